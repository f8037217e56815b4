"""Encoders that die, freeze or break while others wait for what they encode."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import GrpcClient, HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment, deployment, stub
from tests.faults.history import History
from tests.faults.load import at_once, comes_true
from tests.faults.pictures import Picture, device_breaker, picture
from tests.faults.replica import wait_until

pytestmark = pytest.mark.faults

LEASE_S = 5.0
ENCODE_S = 1.0
FREEZE_S = 30.0


def test_f3_who_waits_for_an_encoder_that_is_killed_is_served_by_another(tmp_path: Path, report: Report) -> None:
    """The death of the encoder that holds the lease costs a lease and one more encode, and no request."""
    history, direct, wanted = History(), History(), picture("f3")
    with deployment(tmp_path, environment=stub(encode_s=ENCODE_S)) as running:

        async def scenario() -> float:
            async with (
                GrpcClient(direct, running.encoders[0].target) as leader,
                HttpClient(history, running.urls) as http,
            ):
                leading = asyncio.create_task(leader.embed(wanted))
                await asyncio.to_thread(_wait_for_lease, running)
                waiting = asyncio.create_task(at_once(20, lambda _: http.segment(wanted)))
                await asyncio.sleep(0.3)
                running.encoders[0].kill()
                killed = time.monotonic()
                await asyncio.gather(leading, waiting)
                return max(request.answer.at for request in history) - killed

        seconds = asyncio.run(scenario())
        assert_right(history)
        finished = running.encodes(wanted.digest)
        report.row(
            "F3",
            injected="SIGKILL of the encoder that holds the lease; 20 requests wait, a second encoder is there",
            counted="failed requests; encodes (begun by the killed + finished); seconds until all are answered",
            required=f"0; 1 + 1; at most lease + encode + 1 = {LEASE_S + ENCODE_S + 1:.0f}",
            seen=f"{len(history.failed)}{history.told_failures()}; 1 + {finished}; {seconds:.1f}",
            held=not history.failed and finished == 1 and seconds <= LEASE_S + ENCODE_S + 1,
        )

        running.encoders[1].kill()
        lone = History()

        async def without() -> None:
            async with HttpClient(lone, running.urls) as http:
                await at_once(5, lambda number: http.segment(picture(f"f3-lone-{number}")))

        asyncio.run(without())
        slowest = max(request.seconds for request in lone)
        report.row(
            "F3",
            injected="SIGKILL of the only encoder left",
            counted="answers to 5 new pictures; the slowest",
            required="503 ENCODER_UNAVAILABLE; within 10 s",
            seen=f"{lone.statuses()}; {slowest:.1f} s",
            held=lone.statuses() == {"ENCODER_UNAVAILABLE": 5} and slowest < 10,
        )
    report.assert_held()


def test_f4_an_encoder_frozen_for_30_s_holds_nobody_up_and_changes_nothing_after(
    tmp_path: Path, report: Report
) -> None:
    """The lease of a frozen encoder passes on; what it writes when it wakes up is what is there already."""
    history, direct, wanted = History(), History(), picture("f4")
    with deployment(tmp_path, environment=stub(encode_s=ENCODE_S)) as running:
        frozen = running.encoders[0]

        async def scenario() -> tuple[bytes | None, bytes | None]:
            async with GrpcClient(direct, frozen.target) as leader, HttpClient(history, running.urls) as http:
                leading = asyncio.create_task(leader.embed(wanted))
                await asyncio.to_thread(_wait_for_lease, running)
                frozen.freeze()
                started = time.monotonic()
                try:
                    waiting = asyncio.create_task(at_once(20, lambda _: http.segment(wanted)))
                    others = asyncio.create_task(at_once(10, lambda number: http.segment(picture(f"f4-{number}"))))
                    await asyncio.gather(waiting, others)
                    before = _stored(running, wanted)
                    await asyncio.sleep(max(0.0, started + FREEZE_S - time.monotonic()))
                finally:
                    frozen.thaw()
                await leading
                await asyncio.sleep(ENCODE_S + 1)
                await at_once(4, lambda _: http.segment(wanted))
                return before, _stored(running, wanted)

        before, after = asyncio.run(scenario())
        encodes = running.encodes(wanted.digest)
    assert_right(history)
    slowest = max(request.seconds for request in history)
    report.row(
        "F4",
        injected=f"SIGSTOP of the encoder that holds the lease, SIGCONT after {FREEZE_S:.0f} s; 30 requests meanwhile",
        counted="failed requests; the slowest; encodes; whether the stored embedding changed after",
        required=f"0; below {FREEZE_S:.0f} s; at most 2; no",
        seen=f"{len(history.failed)}{history.told_failures()}; {slowest:.1f} s; {encodes}; "
        f"{'no' if before == after else 'yes'}",
        held=not history.failed and slowest < FREEZE_S and encodes <= 2 and before is not None and before == after,
    )
    report.assert_held()


def test_f23_a_device_error_fails_one_call_and_takes_the_replica_out_of_service(tmp_path: Path, report: Report) -> None:
    """A broken device answers the call that met it with a clean error; other calls are served elsewhere."""
    history, broken = History(), History()
    environment = {**stub(), "SAMOVAR_CHECKPOINT": "stub:1?encode_s=0.05&decode_s=0.002&broken_s=4"}
    with deployment(tmp_path, environment=environment) as running:

        async def scenario() -> tuple[bool, float]:
            async with (
                HttpClient(history, running.urls) as http,
                GrpcClient(broken, running.encoders[0].target) as direct,
            ):
                await direct.embed(device_breaker("f23"))
                left = await comes_true(direct.not_serving, within_s=3)
                await at_once(40, lambda number: http.segment(picture(f"f23-{number}")))
                back = time.monotonic()
                await comes_true(direct.serving, within_s=30)
                await direct.embed(picture("f23-after"))
                return left, time.monotonic() - back

        left, seconds = asyncio.run(scenario())
    assert_right(history)
    first, after = list(broken)
    report.row(
        "F23",
        injected="a picture at which the device of one of two encoders breaks for 4 s; 40 new pictures meanwhile",
        counted="the call that met it; whether the replica reported NOT_SERVING; failed others; the replica afterwards",
        required="INTERNAL; yes; 0; OK",
        seen=f"{first.answer.status}; {'yes' if left else 'no'}; {len(history.failed)}{history.told_failures()}; "
        f"{after.answer.status} after {seconds:.1f} s",
        held=first.answer.status == "INTERNAL" and left and not history.failed and after.ok,
    )
    report.assert_held()


def _wait_for_lease(running: Deployment) -> None:
    with running.redis.client() as client:
        wait_until(
            lambda: any(True for _ in client.scan_iter("sam:v1:lease:*")), within_s=10, what="an encoder takes a lease"
        )


def _stored(running: Deployment, wanted: Picture) -> bytes | None:
    with running.redis.client() as client:
        keys = list(client.scan_iter(f"sam:v1:embedding:*{wanted.digest}*"))
        value = client.get(keys[0]) if len(keys) == 1 else None
    return value if isinstance(value, bytes) else None
