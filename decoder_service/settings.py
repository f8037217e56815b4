"""The settings of the decoder service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from decoder_service.requests import RequestLimits
from sam.settings import AuthSettings, MetricsSettings, ModelSettings, RpcServerSettings, StoreSettings


class DecoderOptions(ModelSettings, StoreSettings, AuthSettings):
    """Everything but where the service listens."""

    decoder_engine: Literal["auto", "fused", "fast", "plain"] = Field(
        "auto",
        description="plain runs SAM's mask decoder as its authors wrote it; fast computes the same rearranged; fused "
        "does so in compiled code, for CPUs with AVX-512 BF16 or AMX; auto: fused where it can run, else fast.",
    )
    decoder_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="The number format of the image's side; auto: bfloat16 where the CPU multiplies it, else float32. "
        "With float32 the engine is fast or plain.",
    )
    decoder_workers: int = Field(
        0, ge=0, le=256, description="How many calls are computed at once; 0: as many as this process has cores."
    )
    decoder_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="Into how many threads one call is cut while others leave cores free; 0: as many as this process "
        "has cores, at most 4.",
    )
    decoder_cache_bytes: int = Field(
        512 * 2**20,
        ge=0,
        description="How much memory recently used images are kept in, ready to decode: 2 MiB each in the fused "
        "engine, in the fast one 4 in bfloat16 and 8 in float32; 0 keeps none.",
    )
    decoder_max_concurrent: int = Field(
        256,
        ge=1,
        description="How many calls of each method one replica works on at once; more are refused as overload.",
    )
    decoder_max_everything: int = Field(
        4, ge=1, description="How many calls that segment everything one replica works on at once, a turn of each."
    )
    decoder_max_prompts: int = Field(256, ge=1, le=1024, description="The most prompts in one call.")
    decoder_max_points: int = Field(1024, ge=1, le=1024, description="The most points in one prompt.")
    decoder_max_pixels: int = Field(
        100_000_000, ge=1, description="The most pixels of a picture whose embedding is sent along with the call."
    )
    decoder_max_response_bytes: int = Field(
        48 * 2**20, ge=2**20, description="The largest answer, in bytes; keep it below the clients' message limit."
    )

    @property
    def request_limits(self) -> RequestLimits:
        """What one call may ask for."""
        return RequestLimits(
            max_prompts=self.decoder_max_prompts,
            max_points=self.decoder_max_points,
            max_pixels=self.decoder_max_pixels,
        )


class DecoderSettings(DecoderOptions, RpcServerSettings, MetricsSettings):
    """The settings of `python -m decoder_service`."""

    port: int = Field(50052, ge=0, le=65535, description="The port to listen on; 0 lets the system choose.")
