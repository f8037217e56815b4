"""The settings of the gateway."""

from __future__ import annotations

from pydantic import Field

from sam.settings import AuthSettings, HttpTlsSettings, MetricsSettings, RpcClientSettings


class GatewayOptions(AuthSettings, HttpTlsSettings, RpcClientSettings):
    """Everything but where the other services are."""

    host: str = Field("127.0.0.1", description="The address to listen on; 0.0.0.0 for all of this machine's.")
    port: int = Field(9001, ge=0, le=65_535, description="The HTTP port; 0 lets the system choose one.")
    request_timeout_s: float = Field(
        120,
        gt=0,
        description="How long one HTTP request may take in all, in seconds; a caller's X-Request-Timeout-Ms can only "
        "shorten it.",
    )
    body_timeout_s: float = Field(
        30, gt=0, description="How long the head of a request, and then its body, may take to arrive, in seconds."
    )
    body_max_bytes: int = Field(
        64 * 2**20,
        ge=1024,
        description="The largest request body accepted, in bytes; base64 adds a third to a picture.",
    )
    bodies_max_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        description="The most bytes of request bodies held at once; over it, new ones are refused as overload.",
    )
    gateway_max_requests: int = Field(
        256,
        ge=1,
        description="How many requests one gateway works on at once; more are refused as overload. Health is not "
        "counted, nor are bodies that still arrive.",
    )
    answer_max_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="The most bytes of masks that one answer in format binary may unpack to.",
    )
    gateway_threads: int = Field(
        0, ge=0, description="How many threads parse large bodies and render masks; 0: one for each core."
    )
    cors_origins: str = Field(
        "",
        description="Web origins, separated by commas, whose pages may read answers; * for all. Empty: none.",
    )
    demo: bool = Field(True, description="Whether the demo page is served, at /demo.")
    drain_s: float = Field(10, ge=0, description="How long accepted work may still take after SIGTERM, in seconds.")


class GatewaySettings(GatewayOptions, MetricsSettings):
    """The gateway on its own."""

    encoder_target: str = Field(
        "127.0.0.1:50051",
        description="The encoder as host:port; every address behind the name is a replica and gets its share.",
    )
    decoder_target: str = Field(
        "127.0.0.1:50052",
        description="The decoder as host:port; every address behind the name is a replica and gets its share.",
    )
    decoder_affinity: bool = Field(
        True,
        description="Whether clicks on one picture go to one decoder, which has its embedding at hand, while it has no "
        "more to do than the others. False: each goes to the next.",
    )
