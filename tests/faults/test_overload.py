"""More work than there is room for, or time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import GrpcClient, HttpClient
from tests.faults.conftest import FigureMissed, Report
from tests.faults.deployment import deployment, stub
from tests.faults.history import History, Request, percentile
from tests.faults.load import steadily
from tests.faults.pictures import picture

pytestmark = pytest.mark.faults

JOB_S = 2.0
SLOT_S = 0.1
DEADLINE_S = 0.2
LATE_S = 0.1
"""How much later than its deadline an answer may come, for the way there and back."""

OVERLOAD_S = 30.0


_LATE = pytest.mark.xfail(
    raises=FigureMissed, strict=False, reason="seen on two shared cores: none computed, 0.21 to 0.86 s of 0.3"
)


@pytest.mark.parametrize(
    "tier", [pytest.param(tier, marks=_LATE) for tier in ("encoder", "encoder over gRPC", "decoder")]
)
def test_f16_what_cannot_be_done_before_its_deadline_is_not_begun(tmp_path: Path, report: Report, tier: str) -> None:
    """Fifty requests with 200 ms behind a job of 2 s are told so in time, and none of them is computed."""
    environment = {**stub(encode_s=JOB_S, decode_s=JOB_S), "SAMOVAR_DECODER_WORKERS": "1"}
    history, late = History(), History()
    hurried = [picture(f"f16-{number}") for number in range(50)]
    with deployment(tmp_path, encoders=1, decoders=1, environment=environment) as running:

        async def scenario() -> float:
            header = {"X-Request-Timeout-Ms": str(int(DEADLINE_S * 1000))}
            async with (
                HttpClient(history, running.urls) as http,
                HttpClient(late, running.urls) as hasty,
                GrpcClient(late, running.encoders[0].target) as direct,
            ):
                await http.embed(picture("f16"), "f16")
                if tier == "decoder":
                    job = asyncio.create_task(http.segment(None, "f16"))
                    asking = lambda _: hasty.segment(None, "f16", headers=header)  # noqa: E731
                else:
                    job = asyncio.create_task(http.embed(picture("f16-job")))
                    if tier == "encoder":
                        asking = lambda number: hasty.embed(hurried[number], headers=header)  # noqa: E731
                    else:
                        asking = lambda number: direct.embed(hurried[number], timeout_s=DEADLINE_S)  # noqa: E731
                await asyncio.sleep(0.2)
                # Within the job, and not all in one moment: their own number is not what is to make them late.
                await steadily(40, asking, count=50)
                await job
                after = await (http.segment(None, "f16") if tier == "decoder" else http.embed(picture("f16-after")))
                return after.seconds

        seconds = asyncio.run(scenario())
        encodes = sum(running.encodes(one.digest) for one in hurried)
    slowest = max(request.seconds for request in late)
    begun = encodes if tier != "decoder" else round(max(0.0, seconds - JOB_S) / JOB_S)
    report.row(
        "F16",
        injected=f"50 requests with {DEADLINE_S * 1000:.0f} ms deadlines behind a job of {JOB_S:.0f} s: {tier}",
        counted="how many were computed; DEADLINE_EXCEEDED; the slowest answer",
        required=f"0; 50; at most {DEADLINE_S + LATE_S:.1f} s",
        seen=f"{begun}; {late.statuses()}; {slowest:.2f} s",
        held=begun == 0 and late.statuses() == {"DEADLINE_EXCEEDED": 50} and slowest <= DEADLINE_S + LATE_S,
    )
    report.assert_held()


_FULL_LOAD = pytest.mark.xfail(
    raises=FigureMissed,
    strict=False,
    reason="seen on two shared cores: 78 to 88 % of the capacity, refusals in 63 to 338 ms",
)


@pytest.mark.parametrize("tier", ["decoder", pytest.param("encoder", marks=_FULL_LOAD)])
def test_f17_ten_times_the_load_leaves_most_of_the_capacity(tmp_path: Path, report: Report, tier: str) -> None:
    """Under tenfold load a tier serves nearly what it can, refuses the rest at once, is healthy and does not grow."""
    # One job at a time, of a quarter of a second: so small a capacity that ten times as much costs little here.
    job_s, capacity = 0.25, 4.0
    environment = {
        **stub(encode_s=job_s, decode_s=job_s),
        "SAMOVAR_ENCODER_QUEUE_IMAGES": "8",
        "SAMOVAR_DECODER_MAX_CONCURRENT": "8",
        "SAMOVAR_DECODER_WORKERS": "1",
    }
    history = History()
    with deployment(tmp_path, encoders=1, decoders=1, gateways=2, environment=environment) as running:
        loaded = running.decoders[0] if tier == "decoder" else running.encoders[0]

        async def scenario() -> tuple[float, list[bool], float]:
            async with HttpClient(history, running.urls) as http, GrpcClient(history, loaded.target) as direct:
                await http.embed(picture("f17"), "f17")
                started, healthy = time.monotonic(), []

                def ask(number: int) -> Awaitable[Request]:
                    if tier == "decoder":
                        return http.segment(None, "f17")
                    return http.embed(picture(f"f17-{number}"))

                count = int(10 * capacity * OVERLOAD_S)
                load = asyncio.create_task(steadily(10 * capacity, ask, count=count))
                await asyncio.sleep(OVERLOAD_S / 3)
                held = []
                while time.monotonic() < started + OVERLOAD_S - 1:
                    healthy.append(await direct.serving())
                    held.append(sum(replica.usage().rss_mib for replica in running.replicas))
                    await asyncio.sleep(0.5)
                await load
                # A moment says little: an encoder's memory goes up and down by tens of MiB with the pictures it has.
                return started, healthy, percentile(held[-10:], 0.5) - percentile(held[:10], 0.5)

        started, healthy, grown = asyncio.run(scenario())
    assert_right(history)
    load = history.since(started)
    served = sum(request.ok and request.answer.at <= started + OVERLOAD_S for request in load)
    refused = [request.seconds for request in load if request.answer.status == "OVERLOADED"]
    others = {status for status in (request.answer.status for request in load) if status not in ("OK", "OVERLOADED")}
    share = served / (capacity * OVERLOAD_S)
    median = percentile(refused, 0.5)
    report.row(
        "F17",
        injected=f"10 times the capacity of the {tier}, for {OVERLOAD_S:.0f} s",
        counted="share of the capacity served; median of the refusals (429); other answers; health; growth of all "
        "processes over the last 20 s, medians of 5 s",
        required="at least 80 %; below 50 ms; none; SERVING; below 20 MiB",
        seen=f"{share:.0%}; {median * 1000:.0f} ms of {len(refused)}; {', '.join(others) or 'none'}; "
        f"{'SERVING' if all(healthy) else 'not always'}; {grown:.1f} MiB",
        held=share >= 0.8 and median < 0.05 and len(refused) > 0 and not others and all(healthy) and grown < 20,
    )
    report.assert_held()
