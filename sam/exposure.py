"""Whether strangers can reach an address, and whether they would be let in."""

from __future__ import annotations

import ipaddress
import socket

import structlog

log = structlog.get_logger("sam.exposure")


def is_loopback(host: str) -> bool:
    """Return whether what listens on `host`, an address or a name, can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {str(address[4][0]) for address in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def warn_if_open(host: str, port: int, *, keys: bool, certificates: bool = False) -> None:
    """Log a warning where strangers may be able to call.

    Args:
        host: what is listened on.
        port: likewise.
        keys: whether callers need an API key.
        certificates: whether they need a certificate.
    """
    if not keys and not certificates and not is_loopback(host):
        log.warning(
            "whoever reaches this address may call: ask for keys with api_keys_file, or let none but trusted machines "
            "reach it",
            address=f"{host}:{port}",
        )
