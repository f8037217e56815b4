"""URLs that lead where they should not, and hosts that do what they should not."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import time
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from aiohttp import web

from encoder_service.addresses import IpAddress
from encoder_service.limits import FetchLimits
from sam.errors import ImageUndecodable, Overloaded, SamovarError
from tests.encoder_service import pictures
from tests.encoder_service.hosts import fetch, limits_for, serving
from tests.encoder_service.running import plain_picture, run, running_encoder
from tests.encoder_service.test_addresses import REFUSED
from tests.faults.deployment import Deployment
from tests.hostile.conftest import Begin

# The same few addresses, as browsers, C libraries and people have spelled them.
# fmt: off
DISGUISES = [
    "2130706433", "017700000001", "0x7f000001", "0x7F000001", "0x7f.1", "127.1", "127.0.1", "0177.0.0.1",
    "0177.0.0.01", "0x7f.0.0.0x1", "00000127.0.0.1", "2852039166", "025177524776", "0xa9fea9fe", "169.254.43518",
    "169.16689662", "0251.0376.0251.0376", "0xA9.0xFE.0xA9.0xFE", "4294967297", "127.0.0.1.", "127.0.0.1..",
    "2130706433.", "0x7f000001.", "169.254.169.254.", "10.0.0.1.", "1.2.3", "0", "0.0", "00", "1", "0x", "0x0",
    "256.256.256.256", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[0:0:0:0:0:ffff:7f00:0001]", "[::1%25lo]",
    "[fe80::1%25eth0]", "[::]", "[0000::1]", "[::127.0.0.1]", "[64:ff9b::169.254.169.254]", "[2002:a9fe:a9fe::]",
    "[fd00:ec2::254]", "[::ffff:0:7f00:1]", "[0:0:0:0:0:0:0:1]", "\u2460\u2461\u2466.0.0.\u2460",
    "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "127.0.0.\uff11", "\u0661\u0662\u0667.0.0.1",
]

# What stands for such an address in a resolver's eyes, or for nothing.
NAMES = [
    "localhost", "LOCALHOST", "localhost.", "localhost.localdomain",
    "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54", "l\u200bocalhost", "loc\u00adalhost", "ip6-localhost",
    "metadata.google.internal", "instance-data", "metadata.azure.internal", "redis",
    "encoder.samovar.svc.cluster.local", "127.0.0.1.nip.example", "-.example", "a..example", ".example",
    "xn--.example", "xn--a.example", "*.example", "example_",
]

# fmt: on
# All of them with a host that would do.
WAYS = [
    "ftp://pictures.example/x",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "data:image/png;base64,iVBORw0KGgo=",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "http://pictures.example/x",
    "HTTP://pictures.example/x",
    "//pictures.example/x",
    "pictures.example/x",
    "https:/pictures.example/x",
    "https://",
    "https:///x",
    "https://user@pictures.example/",
    "https://user:secret@pictures.example/",
    "https://pictures.example@127.0.0.1/",
    "https://127.0.0.1\\@pictures.example/",
    "https://pictures.example\\@127.0.0.1/",
    "https://pictures.example:22/",
    "https://pictures.example:6379/",
    "https://pictures.example:0/",
    "https://pictures.example:65536/",
    "https://pictures.example:-1/",
    "https://pictures.example:443x/",
    "https://pictures.example /x",
    "https://pictures.example/\r\nHost: inside",
    "https://pictures.example/\0",
    "https://pictures.example\t/x",
    "https://[::1/x",
    "https://::1/x",
    "https://[pictures.example]/x",
    "https://%31%32%37.0.0.1/x",
    "https://127.0.0.1%2f@pictures.example/x",
    "https://pictures.example/" + "x" * 9000,
]


def _urls() -> list[str]:
    literals = [f"[{host}]" if ":" in host else host for host in REFUSED]
    return [
        f"https://{host.replace('%', '%25') if '%25' not in host else host}/x"
        for host in [*literals, *DISGUISES, *NAMES]
    ]


async def _anywhere(host: str, port: int) -> list[IpAddress]:
    # Taken for a name, an address in disguise would be tried at this public address, and fail otherwise.
    return [ipaddress.ip_address("192.0.1.1")]


def test_enough_addresses_are_tried() -> None:
    """The table has more addresses and spellings than anybody would try by hand."""
    assert len(set(_urls())) >= 120


@pytest.mark.parametrize("url", WAYS)
def test_nothing_but_https_to_a_public_host_is_fetched(url: str) -> None:
    """Another scheme, another port, a user's name or a URL that parsers differ over is refused."""
    with pytest.raises(SamovarError) as refusal:
        asyncio.run(asyncio.wait_for(fetch(url, FetchLimits(), _anywhere), 5))
    assert refusal.value.reason == "IMAGE_URL_REFUSED"


@pytest.mark.parametrize("host", DISGUISES)
def test_no_disguise_of_an_address_is_looked_up_as_a_name(host: str) -> None:
    """Decimal, octal, hexadecimal, wide and wrapped digits are refused before a resolver could take them for a name."""
    with pytest.raises(SamovarError) as refusal:
        asyncio.run(asyncio.wait_for(fetch(f"https://{host}/x", FetchLimits(), _anywhere), 5))
    assert refusal.value.reason == "IMAGE_URL_REFUSED"


def test_no_spelling_of_an_inner_address_is_fetched_by_the_services(services: Deployment, tally: Begin) -> None:
    """Every address that is not public, and every disguise of one, is refused with one and the same text."""
    counts, texts = tally("URLs of inner addresses, in all spellings, sent to the services"), set()
    with httpx2.Client(base_url=services.urls[0], timeout=60) as http:
        for url in [*_urls(), *WAYS]:
            body = {"image": {"type": "url", "value": url}, "format": "none"}
            answered = http.post("/sam/embed_image", json=body)
            counts.count_status(answered.status_code)
            assert (url, answered.status_code, answered.json()["reason"]) == (url, 400, "IMAGE_URL_REFUSED")
            texts.add(answered.json()["message"])
    assert len(texts) == 1


PNG = pictures.encoded()


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png"})
    await response.prepare(request)
    while True:
        await response.write(b"x")
        await asyncio.sleep(0.01)


def _answering(body: bytes, **headers: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


async def _to_itself(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": request.path})


MANNERS: dict[str, tuple[Callable[[web.Request], Awaitable[web.StreamResponse]], str]] = {
    "a byte at a time": (_drip, "IMAGE_URL_FAILED"),
    "a redirect to itself": (_to_itself, "IMAGE_URL_FAILED"),
    "a header of 64 KiB": (_answering(PNG, X_Long="x" * 2**16), "IMAGE_URL_FAILED"),
    "gzip": (_answering(gzip.compress(bytes(10**7)), Content_Encoding="gzip"), "IMAGE_URL_FAILED"),
    "brotli": (_answering(b"x", Content_Encoding="br"), "IMAGE_URL_FAILED"),
    "gzip within gzip": (
        _answering(gzip.compress(gzip.compress(PNG)), Content_Encoding="gzip, gzip"),
        "IMAGE_URL_FAILED",
    ),
    "more than may be": (_answering(bytes(2**20 + 1)), "IMAGE_TOO_LARGE"),
    "a picture called a page": (_answering(PNG, Content_Type="text/html"), "fetched"),
    "a picture of no type": (_answering(PNG, Content_Type=""), "fetched"),
    "a page called a picture": (_answering(b"<html></html>", Content_Type="image/jpeg"), "fetched"),
}


@pytest.mark.parametrize("name", MANNERS)
def test_a_host_with_bad_manners_costs_little(name: str) -> None:
    """Whatever a host answers, the fetch ends in time with the bytes or a reason; the type it claims counts nothing."""
    handler, expected = MANNERS[name]

    async def scenario() -> None:
        async with serving(handler) as server:
            try:
                await fetch(server.url(), limits_for(server, max_bytes=2**20, total_timeout_s=0.5))
                outcome = "fetched"
            except SamovarError as error:
                outcome = error.reason
            assert outcome == expected

    run(scenario())


def test_what_a_host_calls_its_answer_does_not_matter() -> None:
    """A picture called a page is embedded, and a page called a picture is refused as the page that it is."""

    async def scenario() -> None:
        async with running_encoder(allowed_hosts=["127.0.0.1"]) as encoder:
            async with serving(MANNERS["a picture called a page"][0]) as host:
                answer = await encoder.embed(url=host.url())
                assert (answer.embedding.original_size.height, answer.embedding.original_size.width) == (37, 53)
            async with serving(MANNERS["a page called a picture"][0]) as host:
                with pytest.raises(ImageUndecodable):
                    await encoder.embed(url=host.url())

    run(scenario())


def test_hosts_that_never_answer_take_nobody_elses_place() -> None:
    """While all places for fetching are taken, pictures sent as bytes are embedded, and further URLs turned away."""
    go_on, places, waiting = asyncio.Event(), 4, asyncio.Semaphore(0)

    async def never(_: web.Request) -> web.StreamResponse:
        waiting.release()
        await go_on.wait()
        return web.Response(body=plain_picture(7))

    async def scenario() -> None:
        async with serving(never) as host, running_encoder(allowed_hosts=["127.0.0.1"], max_fetches=places) as encoder:
            stuck = [asyncio.create_task(encoder.embed(url=host.url(f"/{number}"))) for number in range(places)]
            for _ in stuck:
                await waiting.acquire()
            started = time.monotonic()
            await asyncio.gather(*(encoder.embed(plain_picture(shade)) for shade in range(20)))
            with pytest.raises(Overloaded, match="fetching of URLs"):
                await encoder.embed(url=host.url("/one-more"))
            # As long as any of the stuck ones would have had to be waited for.
            assert time.monotonic() - started < FetchLimits().total_timeout_s / 2
            assert not any(task.done() for task in stuck)
            go_on.set()
            await asyncio.gather(*stuck)
            await encoder.embed(url=host.url("/afterwards"))

    run(scenario())
