"""Who may call `samovar serve`, and how: looked at before anything slow is begun."""

from __future__ import annotations

from sam.auth import KeyRing
from sam.errors import StartupError
from sam.tls import ServerTls, Tls
from samovar.settings import ServeSettings


def check_access(settings: ServeSettings) -> str:
    """Check the keys and certificates that the settings name; return in a few words what they come to.

    Raises:
        StartupError: a file cannot be used, or a setting lacks another.
    """
    keys = KeyRing.of(settings)
    https, grpc, client = ServerTls.of_http(settings), ServerTls.of_grpc(settings), Tls.of_grpc(settings)
    if (grpc is None) != (client is None):
        raise StartupError(
            "The gateway calls the services in this process as well: TLS between them needs --grpc-tls-cert, "
            "--grpc-tls-key and --grpc-tls-ca."
        )
    if grpc is not None and grpc.client_ca is not None and client is not None and client.cert is None:
        raise StartupError(
            "The services will ask for a certificate, the gateway's, too: --grpc-tls-client-cert and "
            "--grpc-tls-client-key name one."
        )
    callers = "holders of a key may call" if keys.required else "everyone who reaches it may call"
    return f"{callers}; {'HTTPS' if https else 'HTTP'}, gRPC {f'with TLS ({grpc.kind})' if grpc else 'in plain text'}"
