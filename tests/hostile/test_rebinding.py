"""Names whose addresses change between two questions, asked of a real name server, through the real fetcher."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web

from encoder_service.addresses import AllowedHosts
from encoder_service.fetch import ImageFetcher
from encoder_service.limits import FetchLimits
from sam.errors import SamovarError
from tests.encoder_service.hosts import BODY, run
from tests.hostile.conftest import Begin
from tests.hostile.dns_server import FickleDns, fickle_dns

ALLOWED, INSIDE = "127.0.0.1", "127.0.0.2"
TIMES = 100


@dataclass
class Hosts:
    """Two servers at one port: one that may be fetched from, and one inside the operator's network, that may not."""

    port: int
    allowed: int = 0
    inside: int = 0
    redirect_to: str = ""


@pytest.fixture
def dns() -> Iterator[FickleDns]:
    """A name server."""
    with fickle_dns() as server:
        yield server


@asynccontextmanager
async def both_hosts() -> AsyncIterator[Hosts]:
    first = socket.socket()
    first.bind((ALLOWED, 0))
    hosts = Hosts(first.getsockname()[1])
    second = socket.socket()
    second.bind((INSIDE, hosts.port))

    async def answer(request: web.Request) -> web.Response:
        to_inside = request.transport is not None and request.transport.get_extra_info("sockname")[0] == INSIDE
        hosts.inside += to_inside
        hosts.allowed += not to_inside
        if hosts.redirect_to and request.path != "/last":
            return web.Response(status=302, headers={"Location": hosts.redirect_to})
        return web.Response(body=BODY, content_type="image/png")

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    try:
        for listener in (first, second):
            await web.SockSite(runner, listener).start()
        yield hosts
    finally:
        await runner.cleanup()


async def _fetch(dns: FickleDns, hosts: Hosts, name: str) -> str:
    """Return `fetched`, or the reason of a refusal."""
    limits = FetchLimits(allow_http=True, allowed_hosts=AllowedHosts([f"{ALLOWED}:{hosts.port}"]))
    fetcher = ImageFetcher(limits, resolve=dns.resolve)
    try:
        assert await fetcher.fetch(f"http://{name}:{hosts.port}/first") == BODY
    except SamovarError as error:
        return error.reason
    finally:
        fetcher.close()
    return "fetched"


def test_a_name_is_asked_for_once_and_only_that_answer_is_connected_to(dns: FickleDns) -> None:
    """A name that means a harmless host first and one inside the network next is fetched from the harmless one."""
    dns.names["rebinding.example"] = lambda times: [ALLOWED] if times == 0 else [INSIDE]

    async def scenario() -> None:
        async with both_hosts() as hosts:
            assert await _fetch(dns, hosts, "rebinding.example") == "fetched"
            assert (hosts.allowed, hosts.inside) == (1, 0)
            assert dns.asked == {"rebinding.example": 1}

    run(scenario())


@pytest.mark.parametrize("addresses", [[INSIDE], [ALLOWED, INSIDE], [INSIDE, ALLOWED], [ALLOWED, "10.0.0.1"], []])
def test_an_answer_with_an_inner_address_is_refused(dns: FickleDns, addresses: list[str]) -> None:
    """One address inside the network among those of a name is enough, and nothing is connected to."""
    dns.names["mixed.example"] = lambda _: addresses

    async def scenario() -> None:
        async with both_hosts() as hosts:
            assert await _fetch(dns, hosts, "mixed.example") == "IMAGE_URL_REFUSED"
            assert (hosts.allowed, hosts.inside) == (0, 0)

    run(scenario())


def test_a_redirect_to_the_same_name_is_looked_up_and_checked_again(dns: FickleDns) -> None:
    """A host that redirects to itself and then means another address leads nowhere."""
    dns.names["rebinding.example"] = lambda times: [ALLOWED] if times == 0 else [INSIDE]

    async def scenario() -> None:
        async with both_hosts() as hosts:
            hosts.redirect_to = f"http://rebinding.example:{hosts.port}/last"
            assert await _fetch(dns, hosts, "rebinding.example") == "IMAGE_URL_REFUSED"
            assert (hosts.allowed, hosts.inside) == (1, 0)
            assert dns.asked == {"rebinding.example": 2}

    run(scenario())


def test_a_name_that_flickers_never_leads_inside(dns: FickleDns, tally: Begin) -> None:
    """Of many fetches of a name whose address changes all the time, through redirects as well, none gets inside."""
    counts = tally("fetches of a name whose address changes each time it is asked for")
    dns.names["flickering.example"] = lambda times: [[ALLOWED], [INSIDE], [ALLOWED, INSIDE]][times % 3]

    async def scenario() -> None:
        async with both_hosts() as hosts:
            for redirect in ("", f"http://flickering.example:{hosts.port}/last"):
                hosts.redirect_to = redirect
                for outcome in await asyncio.gather(*(_fetch(dns, hosts, "flickering.example") for _ in range(TIMES))):
                    counts.accept() if outcome == "fetched" else counts.refuse(outcome)
            assert hosts.inside == 0
            assert counts.accepted
            assert counts.outcomes["IMAGE_URL_REFUSED"]
            counts.remark = "none reached the host inside"

    run(scenario())
