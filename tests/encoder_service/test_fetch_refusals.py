"""URLs that are not fetched, however they are disguised."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import aiohttp
import pytest
from aiohttp import web

from encoder_service.addresses import IpAddress
from encoder_service.fetch import ImageFetcher
from encoder_service.limits import FetchLimits
from sam.errors import ImageUrlRefused
from tests.encoder_service.hosts import BODY, LOOPBACK, answer_picture, fetch, limits_for, run, serving


async def _never_asked(host: str, port: int) -> list[IpAddress]:
    raise AssertionError(f"{host} was looked up")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "picture.png",
        "//example.com/x",
        "https://",
        "https:///x",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://example.com/x",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "https://user@example.com/x",
        "https://user:word@example.com/x",
        "https://:word@example.com/x",
        "https://example.com\\@127.0.0.1/x",
        "https://example.com/a\\b",
        "https://exa mple.com/x",
        "https://example.com/x\n",
        "https://example.com/\r\nHost: x",
        "https://exam\tple.com/",
        "https://example.com:99999/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://017700000001/",
        "https://127.0.0.1/",
        "https://127.0.0.1./",
        "https://①②⑦.⓪.⓪.①/",  # IDNA turns these digits into 127.0.0.1
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25lo]/",
        "https://[64:ff9b::7f00:1]/",
        "https://8.8.8.8:22/",
        "http://8.8.8.8/plain-http",
        "https://example.com/" + "x" * 9000,
    ],
)
def test_a_url_that_is_not_plain_https_to_a_public_host_is_refused_unseen(url: str) -> None:
    """Schemes, user names, ports, spellings and addresses that could mislead are refused before any look-up."""
    with pytest.raises(
        ImageUrlRefused, match=r"Could not load input image\. Cause: this server does not fetch that URL"
    ):
        asyncio.run(fetch(url, FetchLimits(), _never_asked))


def test_fetching_can_be_switched_off() -> None:
    """With the switch off no URL is fetched, and the text says so."""
    with pytest.raises(ImageUrlRefused, match="does not fetch URLs"):
        asyncio.run(fetch("https://example.com/x", FetchLimits(enabled=False), _never_asked))


def test_a_name_that_resolves_to_loopback_is_refused_without_connecting() -> None:
    """The address counts, not the name: a public name for a private address is not connected to."""

    async def inside(host: str, port: int) -> list[IpAddress]:
        return [LOOPBACK]

    async def scenario() -> None:
        async with serving(answer_picture) as server:
            with pytest.raises(ImageUrlRefused):
                await fetch(server.url(host="public.example"), FetchLimits(allow_http=True), inside)
            assert server.requests == []

    run(scenario())


def test_the_systems_names_for_loopback_are_refused() -> None:
    """The system's own resolver is checked in the same way."""
    with pytest.raises(ImageUrlRefused):
        asyncio.run(fetch("https://localhost/", FetchLimits()))


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    """A name with a public and a private address is refused as a whole."""

    async def mixed(host: str, port: int) -> list[IpAddress]:
        return [ipaddress.ip_address("8.8.8.8"), LOOPBACK]

    with pytest.raises(ImageUrlRefused):
        asyncio.run(fetch("https://mixed.example/", FetchLimits(), mixed))


def test_an_unknown_name_is_refused_with_the_same_text() -> None:
    """Whether a name exists inside the network cannot be told from the answer."""

    async def unknown(host: str, port: int) -> list[IpAddress]:
        raise socket.gaierror("no such host")

    async def inside(host: str, port: int) -> list[IpAddress]:
        return [LOOPBACK]

    texts = set()
    for resolve in (unknown, inside):
        with pytest.raises(ImageUrlRefused) as refusal:
            asyncio.run(fetch("https://name.example/", FetchLimits(), resolve))
        texts.add(refusal.value.message)
    assert len(texts) == 1


def test_a_name_that_changes_its_address_after_the_check_gains_nothing() -> None:
    """The connection goes to the address that was checked, although a second look-up would give another."""
    answers = [LOOPBACK, ipaddress.ip_address("127.0.0.9")]

    async def rebinding(host: str, port: int) -> list[IpAddress]:
        return [answers.pop(0)]

    async def scenario() -> None:
        async with serving(answer_picture) as checked:
            assert await fetch(checked.url(host="rebinding.example"), limits_for(checked), rebinding) == BODY
            assert len(checked.requests) == 1
            assert checked.requests[0].headers["Host"] == f"rebinding.example:{checked.port}"
        assert len(answers) == 1

    run(scenario())


def test_no_socket_is_opened_to_an_address_that_was_not_checked() -> None:
    """Even a literal address, which the client never looks up, passes the check just before it connects."""

    async def scenario() -> None:
        async with serving(answer_picture) as server:
            fetcher = ImageFetcher(limits_for(server))
            other = ipaddress.ip_address("127.0.0.2")
            async with fetcher._session([other]) as session:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await session.get(server.url())
            fetcher.close()
            assert server.requests == []

    run(scenario())


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect to unchecked addresses, so the environment's is left alone."""

    async def scenario() -> None:
        async with serving(answer_picture) as proxy, serving(answer_picture) as server:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url(""))
            assert await fetch(server.url(), limits_for(server)) == BODY
            assert proxy.requests == []

    run(scenario())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_private_address_is_refused_without_connecting(status: int) -> None:
    """Every kind of redirect is checked like the first URL."""

    async def scenario() -> None:
        async with serving(answer_picture) as private:

            async def to_private(_: web.Request) -> web.StreamResponse:
                return web.Response(status=status, headers={"Location": private.url()})

            async with serving(to_private) as server:
                with pytest.raises(ImageUrlRefused):
                    await fetch(server.url(), limits_for(server))
            assert private.requests == []

    run(scenario())


def test_a_redirect_to_a_name_for_a_private_address_is_refused_without_connecting() -> None:
    """A redirect's host is looked up and checked too."""

    async def scenario() -> None:
        async with serving(answer_picture) as private:

            async def to_private(_: web.Request) -> web.StreamResponse:
                return web.Response(status=302, headers={"Location": private.url(host="public.example")})

            async def inside(host: str, port: int) -> list[IpAddress]:
                return [LOOPBACK]

            async with serving(to_private) as server:
                with pytest.raises(ImageUrlRefused):
                    await fetch(server.url(), limits_for(server), inside)
            assert private.requests == []

    run(scenario())


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "//user@127.0.0.1/", "", "https://127.1/"]
)
def test_a_redirect_to_something_else_than_a_web_page_is_refused(target: str) -> None:
    """The rules for URLs hold for a redirect's target."""

    async def redirect(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": target})

    async def scenario() -> None:
        async with serving(redirect) as server:
            with pytest.raises(ImageUrlRefused):
                await fetch(server.url(), limits_for(server))
            assert len(server.requests) == 1

    run(scenario())
