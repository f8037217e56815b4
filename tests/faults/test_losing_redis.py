"""Redis dies, comes back empty, stalls, is full, or too small, under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import GrpcClient, HttpClient
from tests.faults.conftest import FigureMissed, Report
from tests.faults.deployment import Deployment
from tests.faults.history import OK, History, Request
from tests.faults.load import steadily
from tests.faults.mixture import Mixture
from tests.faults.pictures import picture

FULL = pytest.mark.faults

RECOVERED_S = 5.0
TIMEOUT_S = 1.0
"""The default of `redis_timeout_s`."""

_SLACK_S = 0.1


@pytest.mark.parametrize("down_s", [pytest.param(0.7, id="quick"), pytest.param(5.0, marks=FULL)])
def test_f7_losing_redis_costs_requests_by_name_alone_and_only_while_it_is_gone(
    standing: Deployment, report: Report, down_s: float
) -> None:
    """While Redis is gone, names are 503 and pictures are answered; then all is well again without a restart."""
    history = History()
    moments: dict[str, float] = {}

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            mixture = Mixture(http, f"f7-{down_s}", new=0.02)
            await mixture.prepare()
            done = asyncio.Event()
            load = asyncio.create_task(steadily(20, mixture, until=done))
            await asyncio.sleep(down_s)
            moments["killed"] = time.monotonic()
            standing.redis.stop()
            await asyncio.sleep(down_s)
            await asyncio.to_thread(standing.restart_redis)
            moments["back"] = time.monotonic()
            await asyncio.sleep(down_s * 2)
            moments["flushed"] = time.monotonic()
            await asyncio.to_thread(_flush, standing)
            await asyncio.sleep(down_s * 2)
            done.set()
            await load

    asyncio.run(scenario())
    assert_right(history)
    by_name = [request for request in history if request.picture is None]
    wrongly = [request for request in history.failed if not _may_fail(request, moments["killed"], moments["back"])]
    unwell = [request.invoked for request in history.failed if request.answer.status != "EMBEDDING_NOT_FOUND"]
    recovered = max(unwell, default=0.0)
    recovered_s = max(0.0, recovered - moments["back"])
    report.row(
        "F7",
        injected=f"SIGKILL of Redis, restart after {down_s:.0f} s, FLUSHALL, under 20 requests/s",
        counted="wrong masks; failures of other kinds than by name (503 while away, 404 once empty); seconds from "
        "Redis' return to the last 503",
        required=f"0; 0; at most {RECOVERED_S:.0f}",
        seen=f"0; {len(wrongly)} of {len(history)} ({sum(not r.ok for r in by_name)} by name)"
        f"{': ' + str(wrongly[0]) if wrongly else ''}; {recovered_s:.1f}",
        held=not wrongly and recovered_s <= RECOVERED_S,
    )
    report.assert_held()


@FULL
@pytest.mark.xfail(
    raises=FigureMissed,
    strict=False,
    reason="seen on two shared cores: 0.96 to 1.30 s beyond the worst before, of the 1.1 s required",
)
@pytest.mark.parametrize("how", ["SIGSTOP", "CLIENT PAUSE"])
def test_f8_a_stalled_redis_delays_requests_by_no_more_than_its_time_out(
    standing: Deployment, report: Report, how: str
) -> None:
    """While Redis takes connections and does not answer, a request waits for it once, and later ones not at all."""
    history, stall_s = History(), 5.0
    moments: dict[str, float] = {}

    async def stall() -> None:
        if how == "SIGSTOP":
            standing.redis.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(stall_s)
            standing.redis.process.send_signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(_pause, standing, stall_s)
            await asyncio.sleep(stall_s)

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            known = [picture(f"f8-{how}-{number}") for number in range(4)]

            async def ask(number: int) -> Request:
                fresh = number % 5 == 0
                return await http.segment(picture(f"f8-{how}-new-{number}") if fresh else known[number % 4])

            # Each decoder knows each picture before anything is measured: a gateway asks one of them about it, and the
            # other when that has more than its share. A picture that a decoder does not know is like a new one.
            for one in known:
                await http.segment(one)
            for decoder in standing.decoders:
                async with GrpcClient(history, decoder.target) as direct:
                    for one in known:
                        await direct.segment(one)
            done = asyncio.Event()
            moments["began"] = time.monotonic()
            load = asyncio.create_task(steadily(15, ask, until=done))
            await asyncio.sleep(5)
            moments["stalled"] = time.monotonic()
            await stall()
            moments["over"] = time.monotonic()
            await asyncio.sleep(5)
            done.set()
            await load

    asyncio.run(scenario())
    assert_right(history)
    before = [r for r in history.since(moments["began"]) if r.answer.at < moments["stalled"]]
    during = [r for r in history.since(moments["stalled"]) if r.invoked < moments["over"]]
    late = [request for request in history.since(moments["over"] + RECOVERED_S - 1) if request.answer.cache == "bypass"]
    # The worst against the worst: what this machine adds by itself is in both.
    known, new = (_worst(during, fresh) - _worst(before, fresh) for fresh in (False, True))
    held = known <= TIMEOUT_S + _SLACK_S and new <= TIMEOUT_S + _SLACK_S
    opened = standing.count_events("decoders", "store lost") + standing.count_events("encoders", "store lost")
    report.row(
        "F8",
        injected=f"{how} of Redis for {stall_s:.0f} s, under 15 requests/s",
        counted="worst latency beyond the worst before: of known pictures (one process needs Redis), of new (up "
        "to three do); failed requests; breakers opened",
        required=f"at most the time-out, {TIMEOUT_S} s, + {_SLACK_S} s; 0; at least 1",
        seen=f"{known:.2f} s, {new:.2f} s; {len(history.failed)} of {len(history)}{history.told_failures()}; {opened}",
        held=held and not history.failed and opened >= 1 and not late,
    )
    report.assert_held()


@FULL
def test_f9_a_full_redis_is_gone_past(standing: Deployment, report: Report) -> None:
    """With no room in Redis and nothing evicted, requests are answered with the embedding travelling along."""
    history = History()

    def fill(http: HttpClient) -> Callable[[int], Awaitable[Request]]:
        return lambda number: http.segment(picture(f"f9-{number}"), f"f9-{number}")

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            await steadily(10, fill(http), count=40)

    with standing.redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        try:
            asyncio.run(scenario())
        finally:
            client.config_set("maxmemory", "0")
    assert_right(history)
    bypassed = sum(request.answer.cache == "bypass" for request in history)
    report.row(
        "F9",
        injected="Redis full, maxmemory-policy noeviction",
        counted="failed requests; answers with X-Cache: bypass",
        required="0 of 40; 40",
        seen=f"{len(history.failed)} of {len(history)}{history.told_failures()}; {bypassed}",
        held=not history.failed and bypassed == 40,
    )
    report.assert_held()


@FULL
def test_f10_a_small_redis_that_evicts_stays_small_and_mixes_nothing_up(standing: Deployment, report: Report) -> None:
    """With room for a handful of embeddings, memory stays flat, and what carries its picture is answered."""
    history, limit_mib, peaks = History(), 16, [0.0]

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            mixture = Mixture(http, "f10", pictures=30, new=0.2)
            load = asyncio.create_task(steadily(15, mixture, count=400))
            with standing.redis.client() as client:
                while not load.done():
                    # Without what clients are sending and reading, which is bounded by the number of connections.
                    peaks.append(client.info("memory")["used_memory_dataset"] / 2**20)
                    await asyncio.sleep(0.2)
            await load

    with standing.redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", f"{limit_mib}mb")
        try:
            asyncio.run(scenario())
            evicted = client.info("stats")["evicted_keys"]
        finally:
            client.config_set("maxmemory", "0")
    assert_right(history)
    wrongly = [r for r in history.failed if r.picture or r.answer.status != "EMBEDDING_NOT_FOUND"]
    # Redis evicts after it has taken a value in, so it may hold one embedding of 2 MiB too many.
    flat = max(peaks) <= limit_mib + 2
    report.row(
        "F10",
        injected=f"maxmemory {limit_mib} MiB with allkeys-lru, 30 pictures and 80 new ones in turn",
        counted="wrong masks; failures but 404 by name; peak of Redis' data; keys evicted",
        required=f"0; 0; at most {limit_mib} + 2 MiB; some",
        seen=f"0; {len(wrongly)} of {len(history)}; {max(peaks):.0f} MiB; {evicted}",
        held=not wrongly and flat and evicted > 0,
    )
    report.assert_held()


def _may_fail(request: Request, killed: float, back: float) -> bool:
    """By name alone: 503 while Redis is away, 404 once it has come back empty."""
    if request.picture is not None or request.answer.status == OK:
        return False
    if request.answer.status == "STORE_UNAVAILABLE":
        return request.answer.code == "503" and request.answer.at >= killed
    return request.answer.status == "EMBEDDING_NOT_FOUND" and request.answer.at >= back


def _worst(requests: list[Request], fresh: bool) -> float:
    """Return the longest time that pictures took which were new, or were not."""
    return max(request.seconds for request in requests if ("new" in str(request.picture)) == fresh)


def _flush(standing: Deployment) -> None:
    with standing.redis.client() as client:
        client.flushall()


def _pause(standing: Deployment, seconds: float) -> None:
    with standing.redis.client() as client:
        client.client_pause(int(seconds * 1000), all=True)
