"""The settings of the encoder service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from encoder_service.addresses import AllowedHosts
from encoder_service.limits import DEFAULT_FORMATS, OPTIONAL_FORMATS, FetchLimits, ImageLimits, QueueLimits
from sam.settings import AuthSettings, MetricsSettings, ModelSettings, RpcServerSettings, StoreSettings


class EncoderOptions(ModelSettings, StoreSettings, AuthSettings):
    """Everything but where the service listens."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the image encoder runs; auto: on a GPU if there is one."
    )
    encoder_precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="The number format of the image encoder's matrix products; auto: what suits the device. With the "
        "fused engine float32 may be sums of two numbers in bfloat16, which is float32 to 1e-5 of the embedding.",
    )
    encoder_engine: Literal["auto", "fused", "fast", "plain"] = Field(
        "auto",
        description="plain runs the network as its authors wrote it; fast computes the same with less memory on a CPU, "
        "fused in compiled code, on a GPU in 16 bits; auto: the fastest that can run.",
    )
    encoder_threads: int = Field(
        0, ge=0, le=1024, description="How many threads compute one picture on a CPU; 0: as many as there are cores."
    )
    encoder_decode_threads: int = Field(
        2, ge=1, le=64, description="How many pictures are decoded and resized at once; bounds memory, too."
    )
    encoder_queue_images: int = Field(
        64, ge=1, description="How many pictures may wait for the image encoder; more are refused as overload."
    )
    encoder_queue_bytes: int = Field(
        256 * 2**20, ge=4 * 2**20, description="How many bytes of resized pixels may wait, at most 3 MiB a picture."
    )
    encoder_max_calls: int = Field(
        256, ge=1, description="How many calls one replica works on at once; more are refused as overload."
    )
    encoder_max_call_bytes: int = Field(
        2**30, ge=2**26, description="How many bytes the pictures of these calls may have together, as they were sent."
    )
    encoder_lease_s: int = Field(
        5,
        ge=1,
        le=600,
        description="After how many seconds without a sign of life of the replica that encodes a picture another one "
        "that waits for it begins anew.",
    )
    image_max_bytes: int = Field(20 * 2**20, ge=1, description="The largest picture file accepted, in bytes.")
    image_max_pixels: int = Field(
        64 * 2**20, ge=1, le=178_956_970, description="The most pixels a picture may have; checked before decoding."
    )
    image_max_aspect: int = Field(
        2048, ge=1, le=2048, description="How many times longer than wide a picture may be, or the other way round."
    )
    image_formats: str = Field(
        ",".join(DEFAULT_FORMATS),
        description=f"The formats decoded, with commas between; {', '.join(OPTIONAL_FORMATS)} can be added.",
    )
    url_fetch: bool = Field(True, description="Whether pictures are fetched from URLs.")
    url_allow_http: bool = Field(False, description="Whether plain http is fetched besides https.")
    url_allowed_hosts: str = Field(
        "",
        description="Private hosts to fetch from all the same, with commas between: name, name:port, address, "
        "network/bits.",
    )
    url_connect_timeout_s: float = Field(5, gt=0, description="How long one connection to a URL may take, in seconds.")
    url_timeout_s: float = Field(15, gt=0, description="How long one download may take in all, in seconds.")
    url_max_redirects: int = Field(3, ge=0, le=20, description="How many redirects of a URL are followed.")
    url_max_fetches: int = Field(
        32, ge=1, le=1024, description="How many URLs one replica fetches at once; more are refused as overload."
    )

    @field_validator("image_formats")
    @classmethod
    def _known_formats(cls, value: str) -> str:
        known = (*DEFAULT_FORMATS, *OPTIONAL_FORMATS)
        formats = _items(value.upper())
        if not formats or not set(formats) <= set(known):
            raise ValueError(f"choose from {', '.join(known)}")
        return ",".join(formats)

    @field_validator("url_allowed_hosts")
    @classmethod
    def _readable_hosts(cls, value: str) -> str:
        AllowedHosts(_items(value))
        return value

    @property
    def image_limits(self) -> ImageLimits:
        """What a picture may cost."""
        return ImageLimits(
            max_bytes=self.image_max_bytes,
            max_pixels=self.image_max_pixels,
            max_aspect=self.image_max_aspect,
            formats=tuple(_items(self.image_formats)),
        )

    @property
    def fetch_limits(self) -> FetchLimits:
        """What is fetched, and how long it is tried."""
        return FetchLimits(
            enabled=self.url_fetch,
            allow_http=self.url_allow_http,
            allowed_hosts=AllowedHosts(_items(self.url_allowed_hosts)),
            max_bytes=self.image_max_bytes,
            connect_timeout_s=self.url_connect_timeout_s,
            total_timeout_s=self.url_timeout_s,
            max_redirects=self.url_max_redirects,
            max_fetches=self.url_max_fetches,
        )

    @property
    def queue_limits(self) -> QueueLimits:
        """How much may wait for the device."""
        return QueueLimits(max_images=self.encoder_queue_images, max_bytes=self.encoder_queue_bytes)


class EncoderSettings(EncoderOptions, RpcServerSettings, MetricsSettings):
    """The settings of `python -m encoder_service`."""

    port: int = Field(50051, ge=0, le=65535, description="The port to listen on; 0 lets the system choose.")


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
