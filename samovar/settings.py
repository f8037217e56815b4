"""The settings of `samovar serve`."""

from __future__ import annotations

from pydantic import Field

from decoder_service.settings import DecoderOptions
from encoder_service.settings import EncoderOptions
from gateway.settings import GatewayOptions
from sam.settings import RpcTlsSettings


class ServeSettings(EncoderOptions, DecoderOptions, GatewayOptions, RpcTlsSettings):
    """Everything that the three services can be told, but where they find one another.

    The gateway's `host` and `port` are those of the whole; `device` is the encoder's.
    """

    # The gateway's own default suits replicas behind a load balancer. Here someone has pressed Ctrl-C and waits.
    drain_s: float = Field(1, ge=0, description="How long accepted work may still take after Ctrl-C, in seconds.")
    encoder_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="The encoder's gRPC port, for other backends; unset: the HTTP port + 1; 0 lets the system choose.",
    )
    decoder_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="The decoder's gRPC port, for other backends; unset: the HTTP port + 2; 0 lets the system choose.",
    )
    in_process_store_bytes: int = Field(
        2**30,
        ge=8 * 2**20,
        description="How many bytes of embeddings are kept in this process where there is no Redis; the least recently "
        "used go first.",
    )

    @property
    def ports(self) -> dict[str, int]:
        """The ports to listen on, by the flag that chooses each: HTTP, encoder, decoder."""
        # Where the system chooses the HTTP port, it chooses all.
        next_ports = [self.port + step if self.port else 0 for step in (1, 2)]
        return {
            "--port": self.port,
            "--encoder-port": next_ports[0] if self.encoder_port is None else self.encoder_port,
            "--decoder-port": next_ports[1] if self.decoder_port is None else self.decoder_port,
        }
