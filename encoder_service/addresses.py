"""Which hosts the encoder may connect to when it fetches a picture for a stranger.

`ipaddress.is_global` is not enough: it is true of multicast groups, of addresses that carry another address inside
(NAT64, 6to4, Teredo, IPv4-compatible) and of some clouds' metadata endpoints, and it changes with Python's version.
Here IPv6 is refused but for what IANA hands out to networks, and IPv4 is accepted but for a table.

Sources: IANA's special-purpose address registries for IPv4 and IPv6; RFC 6890, RFC 5156.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

WEB_PORTS = frozenset({80, 443})
"""The ports that a public host may be asked at."""

_REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; Linux connects to itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; holds 100.100.100.200, a cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's host agent, in public address space
        "169.254.0.0/16",  # link-local; holds 169.254.169.254, most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; holds 192.0.0.192, a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112: answers of no use
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks inside a network
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

# What is handed out to networks, and the parts of it that are something else. Outside of it lie loopback, link-local,
# unique local (fc00::/7), multicast, IPv4-mapped and -compatible addresses, and NAT64 (64:ff9b::/96).
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments; holds Teredo (2001::/32), which carries an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)

# 0x7f.1, 017700000001, 2130706433: old libraries read a name whose last part is a number as an IPv4 address.
_ENDS_IN_A_NUMBER = re.compile(r"(?:^|\.)(?:\d+|0[xX][0-9a-fA-F]*)$")


def is_public(address: IpAddress) -> bool:
    """Return whether an address is that of a host on the public internet, for certain."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_IPV4)
    if address.scope_id is not None or address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _REFUSED_IPV6)


def parse_address(text: str) -> IpAddress | None:
    """Return the address that a host is spelled as, None if it is a name.

    Raises:
        ValueError: it is an address in an old spelling (octal, hexadecimal, fewer than four parts).
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        if _ENDS_IN_A_NUMBER.search(text.rstrip(".")):
            raise ValueError("an IPv4 address must be written as four decimal numbers") from None
        return None


@dataclass(frozen=True)
class _Entry:
    host: str | _IpNetwork
    port: int | None

    def allows(self, name: str, port: int, address: IpAddress) -> bool:
        if self.port is not None and self.port != port:
            return False
        return self.host == name if isinstance(self.host, str) else address in self.host


class AllowedHosts:
    """The private hosts that an operator lets the encoder fetch from, at any port or at one."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """Read entries of the forms `name`, `name:port`, `address`, `address:port`, `[v6]:port` and `network/bits`.

        Raises:
            ValueError: an entry has none of these forms.
        """
        self._entries = [_parse_entry(entry.strip().lower()) for entry in entries if entry.strip()]

    def allow(self, name: str, port: int, address: IpAddress) -> bool:
        """Return whether the encoder may connect to `address` at `port` for a URL whose host is `name`.

        Public hosts are allowed at the web's ports, listed ones as listed.
        """
        if any(entry.allows(name.lower().rstrip("."), port, address) for entry in self._entries):
            return True
        return port in WEB_PORTS and is_public(address)


def _parse_entry(entry: str) -> _Entry:
    if "/" in entry:
        return _Entry(ipaddress.ip_network(entry, strict=False), None)
    host, port = entry, None
    if match := re.fullmatch(r"(\[.+\]|[^:]+):(\d+)", entry):
        host, port = match[1], int(match[2])
    address = parse_address(host.strip("[]"))
    if address is not None:
        return _Entry(ipaddress.ip_network(address), port)
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", host):
        raise ValueError(f"{entry!r} is neither a host, a host:port nor a network/bits")
    return _Entry(host.rstrip("."), port)
