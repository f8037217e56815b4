"""Whether something can listen on a port, found out before anything slow is begun."""

from __future__ import annotations

import socket

from sam.errors import StartupError


def check_ports(host: str, wanted: dict[str, int]) -> None:
    """Check that each port is free; port 0, which the system chooses, always is.

    Args:
        host: the address that will be listened on.
        wanted: the ports by the flag that chooses them, such as `{"--port": 9001}`.

    Raises:
        StartupError: one is in use, or the address is not this machine's.
    """
    for flag, port in wanted.items():
        try:
            _try_to_bind(host, port)
        except socket.gaierror:
            raise StartupError(f"{host} is no address of this machine. Choose another one with --host.") from None
        except OSError as error:
            raise StartupError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Choose another port with {flag}."
            ) from None


def _try_to_bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the servers do: connections of an earlier run that are still dying are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
