"""Decoders and whole tiers that come and go under load. Named to come last: its quick part leaves a decoder dead."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment, deployment
from tests.faults.history import History
from tests.faults.load import comes_true, steadily
from tests.faults.mixture import Mixture
from tests.faults.replica import Replica

FULL = pytest.mark.faults
AT_LEAST = 2000
SHARE = 0.2
SHARE_WITHIN_S = 15.0
_WINDOW_S = 3.0


def test_f5_a_killed_decoder_costs_no_request_quick(standing: Deployment) -> None:
    """Under load, the death of one of two decoders is noticed by no client."""
    history = History()

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            mixture = Mixture(http, "f5-quick")
            await mixture.prepare()
            load = asyncio.create_task(steadily(40, mixture, count=100))
            await asyncio.sleep(0.8)
            standing.decoders[0].kill()
            await load

    asyncio.run(scenario())
    assert_right(history)
    assert not history.failed, history.failed[0]


@FULL
def test_f5_decoders_may_die_and_come_back_under_load(standing: Deployment, report: Report) -> None:
    """No request of 2,000 fails while replicas go from 2 to 1 to 2, and the new one soon takes its share."""
    history = History()
    replaced = standing.decoders[0]

    async def scenario() -> float:
        async with HttpClient(history, standing.urls) as http:
            mixture = Mixture(http, "f5")
            await mixture.prepare()
            done = asyncio.Event()
            load = asyncio.create_task(steadily(50, mixture, until=done))
            await asyncio.sleep(5)
            replaced.kill()
            await asyncio.sleep(5)
            await asyncio.to_thread(replaced.restart)
            seconds = await _share_taken(replaced, standing.decoders)
            await comes_true(lambda: len(history) >= AT_LEAST, within_s=300)
            done.set()
            await load
            return seconds

    seconds = asyncio.run(scenario())
    assert_right(history)
    report.row(
        "F5",
        injected="SIGKILL of one of two decoders under 50 requests/s, started again 5 s later",
        counted="failed requests; seconds until the new replica takes more than 20 % of the load",
        required=f"0 of at least 2,000; at most {SHARE_WITHIN_S:.0f}",
        seen=f"{len(history.failed)} of {len(history)}{history.told_failures()}; {seconds:.1f}",
        held=not history.failed and len(history) >= AT_LEAST and seconds <= SHARE_WITHIN_S,
    )
    report.assert_held()


@FULL
def test_f22_every_tier_restarts_in_turn_under_load(tmp_path: Path, report: Report) -> None:
    """SIGTERM, exit 0, start again, replica after replica: clients that heed /readiness notice nothing."""
    history, statuses = History(), []
    with deployment(tmp_path, gateways=2, environment={"SAMOVAR_DRAIN_S": "10"}) as running:

        async def scenario() -> None:
            async with HttpClient(history, running.urls) as http:
                mixture = Mixture(http, "f22", new=0.05)
                await mixture.prepare()
                done = asyncio.Event()
                balancing = asyncio.create_task(_heed_readiness(http, running.urls))
                load = asyncio.create_task(steadily(15, mixture, until=done))
                for replica in running.replicas:
                    await asyncio.sleep(1)
                    statuses.append(await asyncio.to_thread(replica.drain))
                    await asyncio.to_thread(replica.restart)
                await comes_true(lambda: len(history) >= AT_LEAST, within_s=300)
                done.set()
                await load
                balancing.cancel()

        asyncio.run(scenario())
    assert_right(history)
    report.row(
        "F22",
        injected="SIGTERM and restart of 2 encoders, 2 decoders and 2 gateways, one by one, under 15 requests/s",
        counted="failed requests; exit statuses",
        required="0 of at least 2,000; 0 each",
        seen=f"{len(history.failed)} of {len(history)}{history.told_failures()}; {', '.join(map(str, statuses))}",
        held=not history.failed and len(history) >= AT_LEAST and statuses == [0] * 6,
    )
    report.assert_held()


async def _share_taken(replica: Replica, tier: list[Replica]) -> float:
    """Return after how many seconds a replica took more than a fifth of its tier's calls, over a few seconds."""
    started = time.monotonic()
    counts = [(started, *await asyncio.to_thread(_calls, replica, tier))]
    while True:
        await asyncio.sleep(0.5)
        counts.append((time.monotonic(), *await asyncio.to_thread(_calls, replica, tier)))
        at, own, all_calls = counts[-1]
        earlier = next(entry for entry in counts if entry[0] >= at - _WINDOW_S)
        if (own - earlier[1]) > SHARE * (all_calls - earlier[2]) > 0:
            return at - started
        if at - started > 4 * SHARE_WITHIN_S:
            return float("inf")


def _calls(replica: Replica, tier: list[Replica]) -> tuple[int, int]:
    counts = {id(one): len(one.events("call")) for one in tier}
    return counts[id(replica)], sum(counts.values())


async def _heed_readiness(http: HttpClient, urls: list[str]) -> None:
    """Send requests to the gateways that are ready alone, as a load balancer does."""
    # Two probes and the pause between them take less time than a gateway gives notice.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.5)) as session:

        async def status(url: str) -> int:
            try:
                async with session.get(f"{url}/readiness") as response:
                    return response.status
            except aiohttp.ClientConnectorError:
                return 0
            except (aiohttp.ClientError, OSError, TimeoutError):
                return 503

        while True:
            statuses = dict(zip(urls, await asyncio.gather(*map(status, urls)), strict=True))
            ready = [url for url in urls if statuses[url] == 200]
            # None is: then to those that are there at all, and see what happens.
            http.urls = ready or [url for url in urls if statuses[url]] or urls
            await asyncio.sleep(0.2)
