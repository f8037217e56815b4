"""The addresses behind a target of gRPC, as far as this process can find them out itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

Lookup = Callable[[str, int], Coroutine[Any, Any, list[str]]]
"""Returns the addresses of a host, each as `address:port`. Raises OSError."""

_NAME = "dns:"
_OTHERS = ("unix:", "unix-abstract:", "vsock:", "xds:")


@dataclass(frozen=True, slots=True)
class Listed:
    """Addresses that the target itself lists, each as `address:port`."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A name, whose addresses may change."""

    host: str
    port: int


def read_target(target: str) -> Listed | Named | None:
    """Return what a target says; None if only gRPC can tell what is behind it.

    That is so for sockets and xDS, for names with a DNS server of their own (`dns://SERVER/NAME`), and for what has no
    port.
    """
    for scheme in ("ipv4:", "ipv6:"):
        if target.startswith(scheme):
            addresses = tuple(part.strip() for part in target.removeprefix(scheme).split(","))
            return Listed(addresses) if all(map(_split, addresses)) else None
    if target.startswith(_OTHERS):
        return None
    place = target.removeprefix(_NAME)
    if place.startswith("//"):
        server, _, place = place.removeprefix("//").partition("/")
        if server:
            return None
    split = _split(place)
    if split is None:
        return None
    try:
        ip_address(split[0])
    except ValueError:
        return Named(*split)
    return Listed((place,))


def target_of(address: str) -> str:
    """Return gRPC's target for one `address:port`."""
    return f"{'ipv6' if address.startswith('[') else 'ipv4'}:{address}"


async def look_up(host: str, port: int) -> list[str]:
    """Ask the system for the addresses of a host; see `Lookup`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [
        f"[{where[0]}]:{port}" if family is socket.AF_INET6 else f"{where[0]}:{port}" for family, *_, where in found
    ]


def _split(place: str) -> tuple[str, int] | None:
    host, _, port = place.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port.isdecimal() or (":" in host and not bracketed):
        return None
    return host.strip("[]"), int(port)
