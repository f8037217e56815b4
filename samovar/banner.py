"""What `samovar serve` says once it serves."""

from __future__ import annotations

from typing import NamedTuple

from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.embedding_store.redis_clients import describe
from sam.exposure import is_loopback
from samovar.settings import ServeSettings

_ORIGINS = {
    CheckpointOrigin.PUBLISHED: "the published checkpoint, verified",
    CheckpointOrigin.CUSTOM: "a checkpoint of your own",
    CheckpointOrigin.STARTER: "the bundled starter checkpoint",
    CheckpointOrigin.RANDOM: "random weights",
}

_WARNINGS = {
    CheckpointOrigin.STARTER: "The starter is small and knows little. Where there is a network, 'samovar weights pull' "
    "fetches vit_b; otherwise give a file with --checkpoint.",
    CheckpointOrigin.RANDOM: "Random weights: the masks mean nothing. For tests and benchmarks only.",
}


class Addresses(NamedTuple):
    """Where the all-in-one listens."""

    host: str
    http_port: int
    encoder_port: int
    decoder_port: int


def banner(settings: ServeSettings, model: ModelIdentity, addresses: Addresses) -> str:
    """Return the lines that tell a person what is served, where, and how to stop it."""
    host, http_port, encoder_port, decoder_port = addresses
    everywhere = host in ("0.0.0.0", "::")  # noqa: S104 (compared, not listened on)
    shown = "127.0.0.1" if everywhere else f"[{host}]" if ":" in host else host
    base = f"{'https' if settings.http_tls_cert else 'http'}://{shown}:{http_port}"
    rows = [
        ("Model", f"{model.name}, {_ORIGINS[model.origin]}"),
        ("", f"fingerprint {model.fingerprint}"),
        ("HTTP", f"{base}{'  (and on every other address of this machine)' if everywhere else ''}"),
        ("Try it", f"{base}/demo" if settings.demo else f"{base}/docs"),
        ("gRPC", f"encoder {shown}:{encoder_port}, decoder {shown}:{decoder_port}"),
        ("Store", _store(settings)),
        ("Stop", "Ctrl-C; a second one stops at once"),
    ]
    warnings = [_WARNINGS[model.origin]] if model.origin in _WARNINGS else []
    if settings.redis_url is None:
        warnings.append(
            "Embeddings are lost on exit and no other process sees them; --redis-url keeps and shares them."
        )
    if settings.api_keys_file is None and not is_loopback(host):
        warnings.append("Everyone who reaches this machine may call. --api-keys-file asks for a key.")
    lines = ["", "Samovar serves.", *(f"  {name:<7} {text}" for name, text in rows), ""]
    lines += [f"  WARNING {text}" for text in warnings]
    return "\n".join([*lines, ""] if warnings else lines)


def _store(settings: ServeSettings) -> str:
    if settings.redis_url is not None:
        return f"Redis at {describe(settings.redis_url)}"
    return f"in this process, at most {settings.in_process_store_bytes / 2**20:,.0f} MiB"
