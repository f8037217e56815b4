"""Work that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.clients import GrpcClient, HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment, deployment, stub
from tests.faults.history import History, Request
from tests.faults.pictures import Picture, picture
from tests.faults.proxy import chaos_proxy

pytestmark = pytest.mark.faults

JOB_S = 2.0
SLOT_S = 0.1
DEADLINE_S = 0.2
LATE_S = 0.1
"""How much later than its deadline an answer may come, for the way there and back."""

OVERLOAD_S = 30.0


def test_f15_who_leaves_the_queue_frees_the_place_and_is_never_computed(tmp_path: Path, report: Report) -> None:
    """A client that goes while it waits gives its place to another at once; a shared encode goes on for the others."""
    environment = {
        **stub(encode_s=JOB_S, decode_s=JOB_S),
        "SAMOVAR_ENCODER_QUEUE_IMAGES": "1",
        "SAMOVAR_DECODER_MAX_CONCURRENT": "2",
        "SAMOVAR_DECODER_WORKERS": "1",
    }
    with deployment(tmp_path, environment=environment) as running:
        shared = asyncio.run(_leave_a_shared_encode(running))
        report.row(
            "F15",
            injected="the caller whose request began an encode leaves; others wait, at both encoders",
            counted="encodes; answers to those who wait",
            required="1; 4 of 4",
            seen=f"{running.encodes(shared[0].digest)}; {shared[1]} of 4",
            held=running.encodes(shared[0].digest) == 1 and shared[1] == 4,
        )
        # From here on there is one replica of each, and so one queue.
        running.encoders[1].kill()
        running.decoders[1].kill()
        for how in ("HTTP reset", "gRPC cancel"):
            seconds, begun = asyncio.run(_leave_the_encoder(running, how))
            report.row(
                "F15",
                injected=f"{how} of a picture that waits for the encoder, the queue being full",
                counted="seconds until another is accepted; encodes of what was left",
                required=f"at most {SLOT_S}; 0",
                seen=f"{seconds:.3f}; {begun}",
                held=seconds <= SLOT_S and begun == 0,
            )
        seconds = asyncio.run(_leave_the_decoder(running))
        report.row(
            "F15",
            injected="HTTP reset of a click that waits for the decoder, all places being taken",
            counted="seconds until another is accepted",
            required=f"at most {SLOT_S}",
            seen=f"{seconds:.3f}",
            held=seconds <= SLOT_S,
        )
    report.assert_held()


async def _leave_a_shared_encode(running: Deployment) -> tuple[Picture, int]:
    history, wanted = History(), picture("f15-shared")
    async with (
        GrpcClient(history, running.encoders[0].target) as here,
        GrpcClient(history, running.encoders[0].target) as leaver,
        GrpcClient(history, running.encoders[1].target) as there,
    ):
        leading = asyncio.create_task(leaver.embed(wanted))
        await asyncio.sleep(0.5)
        waiting = [asyncio.create_task(client.embed(wanted)) for client in (here, there) for _ in range(2)]
        await asyncio.sleep(0.3)
        await _given_up(leading)
        return wanted, sum(request.ok for request in await asyncio.gather(*waiting))


async def _leave_the_encoder(running: Deployment, how: str) -> tuple[float, int]:
    """Return how long after a waiting request's client left another one was accepted, and how often it was encoded."""
    history = History()
    name = f"f15-{how}"
    left = picture(f"{name}-left")
    async with HttpClient(history, running.urls) as http:
        running_job = asyncio.create_task(http.embed(picture(f"{name}-job")))
        await asyncio.sleep(0.5)
        async with _waiting_request(history, running, left, how) as leave:
            await asyncio.sleep(0.4)
            full = await http.embed(picture(f"{name}-full"))
            assert full.answer.status == "OVERLOADED", full
            gone = await leave()
        seconds, accepted = await _accepted_after(
            gone, lambda number: http.embed(picture(f"{name}-next-{number}")), within_s=JOB_S / 2
        )
        await asyncio.gather(running_job, accepted)
    return seconds, running.encodes(left.digest)


async def _leave_the_decoder(running: Deployment) -> float:
    history, wanted = History(), picture("f15-decoder")
    async with HttpClient(history, running.urls) as http:
        await http.embed(wanted, "f15-decoder")
        job = asyncio.create_task(http.segment(None, "f15-decoder"))
        await asyncio.sleep(0.3)
        with chaos_proxy(running.gateways[0].port) as proxy:
            async with HttpClient(history, [proxy.url]) as leaver:
                waiting = asyncio.create_task(leaver.segment(None, "f15-decoder"))
                await asyncio.sleep(0.3)
                full = await http.segment(None, "f15-decoder")
                assert full.answer.status == "OVERLOADED", full
                gone = time.monotonic()
                await asyncio.to_thread(proxy.reset_connections)
                await waiting
        seconds, accepted = await _accepted_after(gone, lambda _: http.segment(None, "f15-decoder"), within_s=1)
        await asyncio.gather(job, accepted)
    return seconds


@asynccontextmanager
async def _waiting_request(
    history: History, running: Deployment, left: Picture, how: str
) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Send a request; what is yielded makes its client leave, and returns when that was."""
    if how == "gRPC cancel":
        async with GrpcClient(history, running.encoders[0].target) as direct:
            waiting = asyncio.create_task(direct.embed(left))

            async def cancel() -> float:
                gone = time.monotonic()
                await _given_up(waiting)
                return gone

            yield cancel
        return
    with chaos_proxy(running.gateways[0].port) as proxy:
        async with HttpClient(history, [proxy.url]) as leaver:
            waiting = asyncio.create_task(leaver.embed(left))

            async def reset() -> float:
                gone = time.monotonic()
                await asyncio.to_thread(proxy.reset_connections)
                await waiting
                return gone

            yield reset


async def _accepted_after(
    since: float, ask: Callable[[int], Awaitable[Request]], *, within_s: float
) -> tuple[float, asyncio.Task[Request]]:
    """Ask until a request is not refused at once; return how long after a moment it was sent, and the request."""
    number = 0
    while True:
        sent = time.monotonic()
        task = asyncio.ensure_future(ask(number))
        done, _ = await asyncio.wait({task}, timeout=0.3)
        if not done or task.result().ok:
            return sent - since, task
        assert task.result().answer.status == "OVERLOADED", task.result()
        assert time.monotonic() - since < within_s, f"still full after {within_s} s"
        number += 1


async def _given_up(task: asyncio.Task[Request]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
