"""Which addresses and hosts the fetcher may connect to."""

from __future__ import annotations

import ipaddress

import pytest

from encoder_service.addresses import AllowedHosts, is_public, parse_address

REFUSED = [
    # IPv4: this network, private, shared, loopback, link-local
    "0.0.0.0",  # noqa: S104 - an address to refuse, not to bind to
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.1.2.3",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    # IPv4: assignments, documentation, benchmarks, relays, a cloud's agent
    "168.63.129.16",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.175.48.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    # IPv4: multicast, reserved, broadcast
    "224.0.0.1",
    "224.0.0.251",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    # IPv6: unspecified, loopback, link-local, site-local, unique local, multicast
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd12:3456:789a::1",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
    # IPv6 that carries an IPv4 address: mapped, compatible, translated, NAT64, 6to4, Teredo
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::808:808",
    "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:808:808::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    # IPv6: discard, documentation, benchmarks, identifiers, reserved
    "100::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2620:4f:8000::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "8000::1",
]

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "168.63.129.15",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "3ffe::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_a_public_host_is_refused(address: str) -> None:
    """No special, private or wrapped address counts as public, whatever `is_global` says of it."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_accepted(address: str) -> None:
    """Addresses of hosts on the internet are public, the neighbours of every refused network included."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "spelling",
    ["2130706433", "017700000001", "0x7f000001", "0x7F.1", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "1.2.3.4.5"],
)
def test_an_old_spelling_of_an_address_is_no_host(spelling: str) -> None:
    """Decimal, octal, hexadecimal and shortened IPv4 addresses are refused rather than interpreted."""
    with pytest.raises(ValueError, match="four decimal numbers"):
        parse_address(spelling)
    with pytest.raises(ValueError, match="four decimal numbers"):
        parse_address(spelling + ".")


@pytest.mark.parametrize("name", ["example.com", "example.com.", "xn--bcher-kva.de", "minio", "a1.b2", "0x7f.example"])
def test_a_name_is_no_address(name: str) -> None:
    """What does not end in a number is left to the resolver."""
    assert parse_address(name) is None


def _allow(hosts: AllowedHosts, name: str, port: int, address: str) -> bool:
    return hosts.allow(name, port, ipaddress.ip_address(address))


def test_without_a_list_only_public_hosts_at_the_webs_ports_are_allowed() -> None:
    """Ports 80 and 443 of public addresses are allowed; other ports and private addresses are not."""
    hosts = AllowedHosts()
    assert _allow(hosts, "example.com", 443, "8.8.8.8")
    assert _allow(hosts, "example.com", 80, "8.8.8.8")
    assert not _allow(hosts, "example.com", 8443, "8.8.8.8")
    assert not _allow(hosts, "example.com", 443, "10.0.0.1")


def test_a_listed_name_is_allowed_at_its_port_only() -> None:
    """A name with a port opens that port, a name alone opens all, and neither opens another name."""
    hosts = AllowedHosts(["minio.internal:9000", "Pictures.", " "])
    assert _allow(hosts, "MinIO.internal.", 9000, "10.0.0.1")
    assert not _allow(hosts, "minio.internal", 9001, "10.0.0.1")
    assert _allow(hosts, "pictures", 1234, "10.0.0.2")
    assert not _allow(hosts, "evil.pictures", 443, "10.0.0.2")


def test_a_listed_network_is_allowed_under_every_name() -> None:
    """Addresses and networks are compared with what a name resolves to."""
    hosts = AllowedHosts(["10.1.0.0/16", "127.0.0.1:8080", "[fd00::1]:9000", "fd00::2"])
    assert _allow(hosts, "any.example", 9000, "10.1.2.3")
    assert not _allow(hosts, "any.example", 443, "10.2.0.1")
    assert _allow(hosts, "localhost", 8080, "127.0.0.1")
    assert not _allow(hosts, "localhost", 8081, "127.0.0.1")
    assert _allow(hosts, "x", 9000, "fd00::1")
    assert not _allow(hosts, "x", 9001, "fd00::1")
    assert _allow(hosts, "x", 1, "fd00::2")


@pytest.mark.parametrize("entry", ["http://host", "host:port", "10.0.0.0/99", "a b", "127.1"])
def test_a_wrong_entry_is_an_error_at_start(entry: str) -> None:
    """An entry that is no host, host and port, or network is refused instead of ignored."""
    with pytest.raises(ValueError, match=r".+"):
        AllowedHosts([entry])
