"""Pictures fetched from URLs: what arrives, and what fails."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest
from aiohttp import web

from encoder_service.addresses import AllowedHosts, IpAddress
from encoder_service.limits import FetchLimits
from sam.errors import ImageTooLarge, ImageUrlFailed
from tests.encoder_service.hosts import BODY, answer_picture, fetch, limits_for, run, serving


def test_a_picture_at_an_allowed_host_is_downloaded() -> None:
    """The body comes back as it is, asked for without compression, cookies or a referrer."""

    async def scenario() -> None:
        async with serving(answer_picture) as server:
            assert await fetch(server.url(), limits_for(server)) == BODY
            headers = server.requests[0].headers
            assert headers["Accept-Encoding"] == "identity"
            assert "Cookie" not in headers
            assert "Referer" not in headers

    run(scenario())


@pytest.mark.parametrize(("hops", "arrives"), [(1, True), (3, True), (4, False)])
def test_three_redirects_are_followed_and_a_fourth_is_not(hops: int, arrives: bool) -> None:
    """Relative redirects between allowed hosts lead to the picture, up to the limit."""

    async def chain(request: web.Request) -> web.StreamResponse:
        left = int(request.path.strip("/"))
        return (
            await answer_picture(request)
            if left == 0
            else web.Response(status=302, headers={"Location": f"/{left - 1}"})
        )

    async def scenario() -> None:
        async with serving(chain) as server:
            if arrives:
                assert await fetch(server.url(f"/{hops}"), limits_for(server)) == BODY
            else:
                with pytest.raises(ImageUrlFailed, match="redirects more than 3 times"):
                    await fetch(server.url(f"/{hops}"), limits_for(server))

    run(scenario())


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
def test_an_answer_without_a_picture_is_a_failure_that_names_the_status(status: int) -> None:
    """Only a 200 carries the picture."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async def scenario() -> None:
        async with serving(answer) as server:
            with pytest.raises(ImageUrlFailed, match=f"status {status}"):
                await fetch(server.url(), limits_for(server))

    run(scenario())


def test_a_body_announced_too_long_is_not_read() -> None:
    """A Content-Length over the cap is refused before the body."""

    async def scenario() -> None:
        async with serving(answer_picture) as server:
            with pytest.raises(ImageTooLarge, match="more than 4 bytes"):
                await fetch(server.url(), limits_for(server, max_bytes=4))

    run(scenario())


def test_an_endless_body_is_cut_at_the_cap() -> None:
    """A body without length is read up to the cap and no further."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    async def scenario() -> None:
        async with serving(endless) as server:
            with pytest.raises(ImageTooLarge):
                await fetch(server.url(), limits_for(server, max_bytes=300_000))

    run(scenario())


def test_a_compressed_answer_is_not_unpacked() -> None:
    """A small body that would unpack into a large one is refused, packed as it is."""

    async def bomb(_: web.Request) -> web.StreamResponse:
        body = gzip.compress(b"\0" * 10_000_000)
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async def scenario() -> None:
        async with serving(bomb) as server:
            with pytest.raises(ImageUrlFailed, match="compressed"):
                await fetch(server.url(), limits_for(server, max_bytes=100_000))

    run(scenario())


def test_a_body_that_stalls_is_given_up() -> None:
    """A server that stops sending is left when the time for everything is over."""
    go_on = asyncio.Event()

    async def stalling(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await go_on.wait()
        return response

    async def scenario() -> None:
        async with serving(stalling) as server:
            with pytest.raises(ImageUrlFailed, match="took too long"):
                await fetch(server.url(), limits_for(server, total_timeout_s=0.2))
            go_on.set()

    run(scenario())


def test_a_look_up_that_hangs_is_given_up() -> None:
    """The time for everything covers the name server."""

    async def hanging(host: str, port: int) -> list[IpAddress]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(ImageUrlFailed, match="took too long"):
        asyncio.run(fetch("https://example.com/", FetchLimits(total_timeout_s=0.05), hanging))


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    """A connection over which no TLS and no answer comes ends with the time for one connection."""

    async def scenario() -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        limits = FetchLimits(allowed_hosts=AllowedHosts([f"127.0.0.1:{port}"]), connect_timeout_s=0.1)
        with pytest.raises(ImageUrlFailed, match="took too long"):
            await fetch(f"https://127.0.0.1:{port}/", limits)
        listener.close()

    run(scenario())


def test_a_host_that_refuses_connections_is_a_failure() -> None:
    """Nothing of the operating system's text reaches the caller."""

    async def scenario() -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        limits = FetchLimits(allow_http=True, allowed_hosts=AllowedHosts([f"127.0.0.1:{port}"]))
        with pytest.raises(ImageUrlFailed, match="could not be reached") as failure:
            await fetch(f"http://127.0.0.1:{port}/", limits)
        assert str(port) not in failure.value.message

    run(scenario())


def test_an_answer_that_is_no_http_is_a_failure() -> None:
    """A server of another protocol does not upset the fetcher."""

    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(gibberish, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        limits = FetchLimits(allow_http=True, allowed_hosts=AllowedHosts(["127.0.0.1"]))
        with pytest.raises(ImageUrlFailed):
            await fetch(f"http://127.0.0.1:{port}/", limits)
        server.close()
        await server.wait_closed()

    run(scenario())


def test_a_body_cut_short_is_a_failure() -> None:
    """A connection that ends before the announced length gives no half picture."""

    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(short, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        limits = FetchLimits(allow_http=True, allowed_hosts=AllowedHosts(["127.0.0.1"]))
        with pytest.raises(ImageUrlFailed):
            await fetch(f"http://127.0.0.1:{port}/", limits)
        server.close()
        await server.wait_closed()

    run(scenario())
