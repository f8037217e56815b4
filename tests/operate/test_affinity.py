"""What image affinity saves and costs: eight decoders, two gateways, 200 pictures and a Redis, all real processes."""

from __future__ import annotations

import asyncio
import datetime
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.deployment import Deployment, deployment
from tests.faults.history import History, Request
from tests.faults.load import comes_true
from tests.faults.pictures import Picture, picture
from tests.faults.table import write_section

pytestmark = pytest.mark.operate

DECODERS = 8
PICTURES = 200
CLICKS_EACH = 10
PEOPLE = 12
"""Each waits for an answer before the next click."""

ROOM_FOR = 40
"""How many pictures one decoder keeps: all eight together have room for all of them, one alone has not."""

_PREPARED_BYTES = 4 * 2**20
"""One picture in a decoder that serves the stub, which keeps embeddings as float32."""

EMBEDDING_BYTES = 2 * 2**20

FEWER_BYTES = 4.0
"""How many times fewer bytes a click reads out of Redis, at least."""

BALANCED = 1.25
"""The most that a decoder has of what is its share."""

MOVED = 2.0
"""How many times as many pictures move as belong to one decoder, at most: of those that were shared out for balance
some move as well."""


@dataclass
class Phase:
    """What one way of asking cost.

    Attributes:
        clicks: how many there were.
        read_bytes: what Redis sent meanwhile.
        per_decoder: the clicks of each decoder.
        decoders_per_picture: at how many decoders a picture was asked for, on average.
    """

    clicks: int
    read_bytes: int
    per_decoder: list[int]
    decoders_per_picture: float

    @property
    def bytes_per_click(self) -> float:
        """What one click read out of Redis."""
        return self.read_bytes / self.clicks

    @property
    def imbalance(self) -> float:
        """How many times its share the decoder with the most clicks had."""
        return max(self.per_decoder) * len(self.per_decoder) / sum(self.per_decoder)


def test_affinity_saves_most_reads_and_keeps_the_balance(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one run, with affinity and without; then a decoder is killed and comes back, and no click fails."""
    history = History()
    settings = {
        "SAMOVAR_DECODER_AFFINITY": "false",
        "SAMOVAR_DECODER_CACHE_BYTES": str(ROOM_FOR * _PREPARED_BYTES),
        # Patient with Redis: two cores serve all of it.
        "SAMOVAR_REDIS_TIMEOUT_S": "3",
    }
    with deployment(tmp_path, encoders=1, decoders=DECODERS, gateways=2, environment=settings) as running:
        off = asyncio.run(_phase(running, history, "off"))
        for gateway in running.gateways:
            gateway.drain()
            gateway.environment["SAMOVAR_DECODER_AFFINITY"] = "true"
            gateway.restart()
        on = asyncio.run(_phase(running, history, "on"))
        moved = asyncio.run(_lose_and_regain(running, history))
    assert_right(history)
    rows = _rows(off, on, moved, history)
    with capsys.disabled():
        print("\n" + rows)
    document = request.config.getoption("table", None)
    if document and "<!-- affinity -->" in Path(document).read_text():
        note = f"Run of {datetime.date.today():%d %B %Y}, {os.cpu_count()} cores, shared with other work."
        write_section(Path(document), "affinity", f"{note}\n\n{rows}\n")
    assert not history.failed, history.failed[0]
    assert off.bytes_per_click > FEWER_BYTES * on.bytes_per_click
    assert on.imbalance < BALANCED
    assert moved["nothing"] < 1 / DECODERS
    for change in ("a decoder killed", "the decoder back"):
        assert 0 < moved[change] < MOVED / DECODERS


async def _phase(running: Deployment, history: History, name: str) -> Phase:
    """Embed pictures that nobody knows yet, and click on each of them some times, in any order."""
    known = [picture(f"{name} {number}") for number in range(PICTURES)]
    async with HttpClient(history, running.urls) as http:
        await _embed(http, known)
        await _connected(running, http, known[0])
        clicks = [number for number in range(PICTURES) for _ in range(CLICKS_EACH)]
        random.Random(0).shuffle(clicks)
        before = _sent_bytes(running)
        asked = await _clicked(http, [known[number] for number in clicks])
        read = _sent_bytes(running) - before
    served = _served(running, asked)
    pairs = {(one.image_id, served[one.request_id]) for one in asked}
    counts = Counter(served.values())
    return Phase(len(asked), read, [counts[number] for number in range(DECODERS)], len(pairs) / PICTURES)


async def _lose_and_regain(running: Deployment, history: History) -> dict[str, float]:
    """Click on each picture once more, before and after each change; return which part of them has moved."""
    known = [picture(f"on {number}") for number in range(PICTURES)]
    lost = running.decoders[0]
    moved = {}
    async with HttpClient(history, running.urls) as http:

        async def homes() -> dict[str, int]:
            asked = await _clicked(http, known)
            served = _served(running, asked)
            return {one.image_id: served[one.request_id] for one in asked}

        before = await homes()
        after = await homes()
        moved["nothing"] = _changed(before, after)
        load = asyncio.create_task(_clicked(http, known * 2))
        await asyncio.sleep(1)
        lost.kill()
        await load
        before, after = after, await homes()
        assert 0 not in after.values()
        moved["a decoder killed"] = _changed(before, after)
        load = asyncio.create_task(_clicked(http, known * 4))
        await asyncio.to_thread(lost.restart)
        await load
        await _connected(running, http, known[0])
        before, after = after, await homes()
        assert 0 in after.values()
        moved["the decoder back"] = _changed(before, after)
    return moved


async def _clicked(http: HttpClient, shown: Sequence[Picture]) -> list[Request]:
    """Click on pictures by name; all of it must be answered."""
    asked: list[Request] = []
    turns = iter(shown)

    async def person() -> None:
        for one in turns:
            asked.append(await http.segment(None, one.name))

    await asyncio.gather(*(person() for _ in range(PEOPLE)))
    failed = [one for one in asked if not one.ok]
    assert not failed, failed[0]
    return asked


async def _embed(http: HttpClient, known: Sequence[Picture]) -> None:
    for start in range(0, len(known), 10):
        await asyncio.gather(*(http.embed(one, one.name) for one in known[start : start + 10]))


async def _connected(running: Deployment, http: HttpClient, shown: Picture) -> None:
    """Wait until each gateway that chooses has all decoders to choose from."""
    choosing = [one for one in running.gateways if one.environment["SAMOVAR_DECODER_AFFINITY"] == "true"]
    for url in running.urls:
        await http.segment(shown, shown.name, url=url)

    def connected() -> bool:
        seen = [one.events("replicas") for one in choosing]
        return all(events and len(events[-1]["ready"]) == DECODERS for events in seen)

    assert await comes_true(connected, within_s=30)


def _sent_bytes(running: Deployment) -> int:
    with running.redis.client() as client:
        return int(client.info("stats")["total_net_output_bytes"])


def _served(running: Deployment, asked: Sequence[Request]) -> dict[str, int]:
    """Return which decoder has answered each request, by what the decoders have logged."""
    wanted = {one.request_id for one in asked}
    return {
        str(event["request_id"]): number
        for number, decoder in enumerate(running.decoders)
        for event in decoder.events("call")
        if event.get("request_id") in wanted and event["outcome"] == "OK"
    }


def _changed(before: dict[str, int], after: dict[str, int]) -> float:
    return sum(before[name] != after[name] for name in before) / len(before)


def _rows(off: Phase, on: Phase, moved: dict[str, float], history: History) -> str:
    """Return the table."""
    read_off, read_on = (
        f"{one.bytes_per_click / 1024:,.0f} KiB ({one.bytes_per_click / EMBEDDING_BYTES:.2f} embeddings)"
        for one in (off, on)
    )
    own = f"one of {DECODERS}, which has {1 / DECODERS:.1%} of them,"
    lines = [
        "| | affinity off | affinity on |",
        "|---|---|---|",
        f"| read from Redis for a click | {read_off} | {read_on} |",
        f"| decoders asked about one picture | {off.decoders_per_picture:.1f} | {on.decoders_per_picture:.1f} |",
        f"| the busiest decoder's clicks, of its share | {off.imbalance:.2f} | {on.imbalance:.2f} |",
        f"| clicks | {off.clicks:,} | {on.clicks:,} |",
        f"| pictures that moved, with no decoder lost | | {moved['nothing']:.1%} |",
        f"| pictures that moved as {own} was killed | | {moved['a decoder killed']:.1%} |",
        f"| pictures that moved as it came back | | {moved['the decoder back']:.1%} |",
        f"| requests that failed, of {len(history):,} in all | | {len(history.failed)} |",
    ]
    return "\n".join(lines)
