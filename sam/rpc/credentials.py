"""TLS as gRPC takes it."""

from __future__ import annotations

from pathlib import Path

import grpc

from sam.tls import ServerTls, Tls


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Return the credentials of a server whose files have been checked."""
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())],
        root_certificates=tls.client_ca.read_bytes() if tls.client_ca else None,
        require_client_auth=tls.client_ca is not None,
    )


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Return the credentials of a channel.

    Raises:
        StartupError: a file cannot be used.
    """
    tls.check()
    ca, key, cert = (Path(file).read_bytes() if file else None for file in (tls.ca, tls.key, tls.cert))
    return grpc.ssl_channel_credentials(ca, key, cert)
