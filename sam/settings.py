"""Settings: declared once, read from flags and from `SAMOVAR_*` variables alike.

A setting is a field of one of the classes below or of a service's own `settings.py`: its name carries its unit, its
description is one sentence on its effect. `--flag-name` is `SAMOVAR_FLAG_NAME`; a flag wins over the variable. The
command line is made from the same fields (`sam.command`), and so is README's table (a test compares them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "SAMOVAR_"

EmbeddingDtype = Literal["float16", "float32", "int8"]
"""How embeddings are stored."""


class Settings(BaseSettings):
    """The base of all settings."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, env_ignore_empty=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe log lines that are written."
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        "auto",
        description="One JSON object a line, or lines for a person; auto: pretty on a terminal.",
    )


class AuthSettings(Settings):
    """Who may call."""

    api_keys_file: Path | None = Field(
        None,
        description="A file with one API key a line, plain or as sha256:HASH, and its limits; only their holders may "
        "call. Unset: everyone may.",
    )
    key_rate_per_s: float = Field(
        0,
        ge=0,
        description="How many requests a second one gateway takes from the holder of one API key, where its line says "
        "nothing else, and one service four times as many calls; 0: any number.",
    )
    key_concurrency: int = Field(
        0,
        ge=0,
        description="How many requests of one API key one gateway works on at once, where its line says nothing else, "
        "and one service four times as many calls; 0: any number.",
    )


class StoreSettings(Settings):
    """Where embeddings are kept."""

    redis_url: str | None = Field(
        None,
        description="The Redis that all replicas share: redis://redis:6379/0 (rediss:// for TLS), "
        "redis+sentinel://host:26379,host/master-name/0 or redis+cluster://host:6379,host.",
    )
    redis_password_file: Path | None = Field(
        None, description="A file with the password of the user that redis_url names, which then has none."
    )
    redis_timeout_s: float = Field(1, gt=0, le=60, description="How long one Redis command may take, in seconds.")
    embedding_ttl_s: int = Field(
        86_400,
        ge=0,
        description="How long an unused embedding is kept, in seconds; 0 keeps it until it is evicted.",
    )
    embedding_dtype: EmbeddingDtype = Field(
        "float16",
        description="How embeddings are stored: 2 MiB each as float16, 4 MiB as float32, 1 MiB as int8, whose masks "
        "overlap with those of float32 by a mean IoU of 0.998.",
    )
    share_embeddings: bool = Field(
        False,
        description="Whether holders of different API keys share the embeddings of equal pictures.",
    )


class ModelSettings(Settings):
    """Which model is served."""

    model: Literal["vit_b", "vit_l", "vit_h", "starter"] | None = Field(
        None,
        description="The model to serve. Unset: vit_b if its checkpoint is there or can be downloaded, "
        "otherwise the bundled starter, if this build carries one.",
    )
    checkpoint: str | None = Field(
        None,
        description="A checkpoint file in SAM's format, fine-tuned ones too, or random:SEED for "
        "meaningless seeded weights, or stub:VERSION for a stub (both for tests and benchmarks only). Unset: the "
        "published file.",
    )
    weights_dir: Path = Field(Path("weights"), description="The folder in which published checkpoints are kept.")
    weights_url: str = Field(
        "https://dl.fbaipublicfiles.com/segment_anything/",
        description="Where published checkpoints are downloaded from: the publisher or a mirror.",
    )


class HttpTlsSettings(Settings):
    """What the gateway shows its callers."""

    http_tls_cert: Path | None = Field(
        None,
        description="A PEM file with the gateway's certificate and those between it and its authority: HTTPS instead "
        "of HTTP.",
    )
    http_tls_key: Path | None = Field(None, description="The PEM file of that certificate's private key.")


class RpcTlsSettings(Settings):
    """What a gRPC service shows its callers, and what it asks of them."""

    grpc_tls_cert: Path | None = Field(
        None,
        description="A PEM file with a gRPC service's certificate and those between it and its authority: TLS instead "
        "of plain text.",
    )
    grpc_tls_key: Path | None = Field(None, description="The PEM file of that certificate's private key.")
    grpc_tls_client_ca: Path | None = Field(
        None,
        description="A PEM file with authorities: mutual TLS, only callers with a certificate of theirs get through.",
    )


class RpcClientSettings(Settings):
    """How the services are called."""

    grpc_tls_ca: Path | None = Field(
        None,
        description="A PEM file with the authorities of the services' certificates: they are called over TLS.",
    )
    grpc_tls_client_cert: Path | None = Field(
        None, description="A PEM file with the certificate to show to services that ask for one."
    )
    grpc_tls_client_key: Path | None = Field(None, description="The PEM file of that certificate's private key.")
    grpc_tls_server_name: str = Field(
        "",
        description="The name that the services' certificates must have. Empty: the host of their target.",
    )


class MetricsSettings(Settings):
    """Where a service on its own tells what it counts."""

    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="The port on which a service tells Prometheus what it counts, at /metrics, over plain HTTP and "
        "without a key; 0 lets the system choose. Unset: none (9464 in our images); a gateway tells it on its own port "
        "as well.",
    )


class RpcServerSettings(RpcTlsSettings):
    """How a gRPC service listens."""

    host: str = Field("127.0.0.1", description="The address to listen on; 0.0.0.0 for all of this machine's.")
    max_message_bytes: int = Field(64 * 2**20, ge=8 * 2**20, description="The largest gRPC message accepted, in bytes.")
    max_connection_age_s: int = Field(
        10,
        ge=1,
        description="After how many seconds a client is asked to reconnect, so that new replicas get work.",
    )
    drain_s: float = Field(10, ge=0, description="How long accepted work may still take after SIGTERM, in seconds.")
