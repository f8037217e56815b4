"""Replicas that are found through DNS, while there are more of them and then fewer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import DECODER_NAME, Deployment, deployment
from tests.faults.history import History
from tests.faults.load import steadily
from tests.faults.mixture import Mixture
from tests.faults.names import name_server

pytestmark = pytest.mark.faults

FOUND_WITHIN_S = 30.0
"""As long as a client keeps a connection, by default, before it asks DNS again."""

HUSHED_S = 14.0
FOUND_ANEW_WITHIN_S = 15.0
"""A connection's age, by default, and the time in which a lost question is asked again."""

MEASURED_S = 10.0
BALANCED = 0.2


def test_f6_decoders_found_by_dns_share_the_load_and_leave_it_without_a_loss(tmp_path: Path, report: Report) -> None:
    """From one address to four and back, under load: each takes its part within 20 %, and no request fails."""
    history = History()
    with name_server(tmp_path) as names:
        settings = {"SAMOVAR_DRAIN_S": "10"}
        with deployment(tmp_path, encoders=1, decoders=4, environment=settings, decoders_behind=names) as running:

            async def scenario() -> tuple[float, list[float]]:
                async with HttpClient(history, running.urls) as http:
                    mixture = Mixture(http, "f6")
                    await mixture.prepare()
                    done = asyncio.Event()
                    load = asyncio.create_task(steadily(20, mixture, until=done))
                    await asyncio.sleep(3)
                    names.set(DECODER_NAME, [replica.host for replica in running.decoders])
                    found_s = await _all_asked(running)
                    before = _calls(running)
                    await asyncio.sleep(MEASURED_S)
                    new = [after - earlier for after, earlier in zip(_calls(running), before, strict=True)]
                    names.set(DECODER_NAME, [running.decoders[0].host])
                    for replica in running.decoders[1:]:
                        await asyncio.to_thread(replica.drain)
                    await asyncio.sleep(3)
                    done.set()
                    await load
                    return found_s, [count / sum(new) for count in new]

            found_s, shares = asyncio.run(scenario())
    assert_right(history)
    fair = 1 / len(shares)
    report.row(
        "F6",
        injected="A records of the decoders change from 1 to 4 and back to 1 (SIGTERM), under 20 requests/s",
        counted="seconds until all four are asked; each one's share after; failed requests",
        required=f"{FOUND_WITHIN_S:.0f}; {fair * (1 - BALANCED):.0%} to {fair * (1 + BALANCED):.0%}; 0",
        seen=f"{found_s:.1f}; {', '.join(f'{share:.0%}' for share in shares)}; {len(history.failed)} of {len(history)}"
        f"{history.told_failures()}",
        held=found_s <= FOUND_WITHIN_S
        and all(fair * (1 - BALANCED) <= share <= fair * (1 + BALANCED) for share in shares)
        and not history.failed,
    )
    report.assert_held()


def test_f6_a_name_server_that_loses_questions_delays_new_decoders_no_longer_than_that(
    tmp_path: Path, report: Report
) -> None:
    """Decoders that come while the name server answers nothing get work soon after it answers again."""
    history = History()
    with (
        name_server(tmp_path) as names,
        deployment(tmp_path, encoders=1, decoders=2, decoders_behind=names) as running,
    ):

        async def scenario() -> float:
            async with HttpClient(history, running.urls) as http:
                mixture = Mixture(http, "f6-lost")
                await mixture.prepare()
                done = asyncio.Event()
                load = asyncio.create_task(steadily(20, mixture, until=done))
                await asyncio.to_thread(names.hush)
                names.set(DECODER_NAME, [replica.host for replica in running.decoders])
                # Longer than a connection lasts, so that the name is asked for in vain.
                await asyncio.sleep(HUSHED_S)
                await asyncio.to_thread(names.begin_anew)
                found_s = await _all_asked(running)
                done.set()
                await load
                return found_s

        found_s = asyncio.run(scenario())
    assert_right(history)
    report.row(
        "F6",
        injected=f"the decoders' name server answers nothing for {HUSHED_S:.0f} s; a second decoder comes meanwhile",
        counted="seconds from its answering again until both are asked; failed requests",
        required=f"{FOUND_ANEW_WITHIN_S:.0f}; 0",
        seen=f"{found_s:.1f}; {len(history.failed)} of {len(history)}{history.told_failures()}",
        held=found_s <= FOUND_ANEW_WITHIN_S and not history.failed,
    )
    report.assert_held()


async def _all_asked(running: Deployment) -> float:
    started = time.monotonic()
    while not all(_calls(running)):
        await asyncio.sleep(0.5)
        if time.monotonic() - started > 2 * FOUND_WITHIN_S:
            return float("inf")
    return time.monotonic() - started


def _calls(running: Deployment) -> list[int]:
    return [len(replica.events("call")) for replica in running.decoders]
