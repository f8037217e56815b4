"""What is done to the containers, and what must come of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sam.errors import EmbeddingNotFound, StoreUnavailable
from tests.compose.engine import CommandFailed, Engine
from tests.compose.photograph import MODEL, check_photograph
from tests.compose.shares import Moments, balanced_after, shares, told
from tests.compose.stack import Stack
from tests.compose.table import Row
from tests.compose.traffic import Traffic, at, traffic
from tests.faults.checker import violations
from tests.faults.history import Request

_T = TypeVar("_T")

STUB = "stub:v1?encode_s=0.05&decode_s=0.002"
"""A model that costs no processor time, whose masks show which picture and which prompt they were made from."""

BALANCED_WITHIN_S = 30.0
LOW, HIGH = 0.15, 0.35
RECOVERED_WITHIN_S = 5.0
_WINDOW_S = 5.0
_SETTLED_S = 15.0
_AWAY_S = 8.0

Report = Callable[[Row], None]


def segment_a_photograph(engine: Engine, folder: Path, report: Report) -> None:
    """Bring the stack up with a network in it, look at how it is confined, segment a photograph, and take it down."""
    stack = Stack(engine, **MODEL)
    started = time.monotonic()
    stack.up()
    took_s = time.monotonic() - started
    report(
        Row(
            "brought up: Redis, weights, encoder, decoder, gateway",
            "all healthy by their own checks, in order",
            f"all healthy after {took_s:.0f} s",
            held=True,
        )
    )
    report(_confinement(stack))
    try:
        seen, held = check_photograph(stack.url, folder), True
    except AssertionError as error:
        lines = str(error).strip().splitlines()
        # Of a server that did not start, the last line says why.
        seen, held = " ... ".join(dict.fromkeys(line[:200] for line in (lines[0], lines[-1]))), False
    report(
        Row(
            "a photograph segmented over HTTP, sent and then by name",
            "the masks of a server without containers",
            seen,
            held,
        )
    )
    stack.down()
    left = engine.leftovers()
    report(Row("taken down", "no container, volume or network is left", ", ".join(left) or "none", not left))


async def change_under_load(engine: Engine, report: Report) -> None:
    """Bring the stack up with the stub, and scale, kill and restart while people click."""
    try:
        # Long enough for a name that the DNS server loses and is asked for again; see `engine`.
        await _change(Stack(engine, SAMOVAR_CHECKPOINT=STUB, SAMOVAR_REDIS_TIMEOUT_S="2"), report)
    finally:
        # What is under way in a thread does not go on for minutes after a Ctrl-C.
        engine.stop()


async def _change(stack: Stack, report: Report) -> None:
    await asyncio.to_thread(stack.up)
    async with traffic(stack.url) as people:
        await people.name_pictures()
        await _add_decoders(stack, people, report)
        await _kill(stack, people, report, "decoder", "one of four decoders")
        await _add_encoder(stack, people, report)
        await _kill(stack, people, report, "encoder", "one of two encoders")
        await _lose_redis(stack, people, report)
        await people.name_pictures()
        await _shrink(stack, people, report, "encoder", "encoders 2→1")
        await _shrink(stack, people, report, "decoder", "decoders 4→1")
        answers = sum(request.ok for request in people.history)
        wrong = violations(people.history)
    report(
        Row(
            "all of the above",
            "0 masks of another picture or prompt, exactly one answer to each request",
            f"{len(wrong)} in {answers} answers" + (f", e.g. {wrong[0][:120]}" if wrong else ""),
            not wrong,
        )
    )
    await asyncio.to_thread(stack.down)


async def _add_decoders(stack: Stack, people: Traffic, report: Report) -> None:
    def work() -> tuple[float, Moments]:
        stack.pause(_WINDOW_S)
        new = stack.add("decoder", 4)
        ready = _ready_at(stack, "decoder", "decoder ready", new)
        stack.pause(ready + BALANCED_WITHIN_S + _SETTLED_S - time.time())
        return ready, _moments(stack, "decoder", "call")

    (ready, moments), requests = await people.during(work)
    report(_failures("decoders 1→4 under load", requests))
    end = ready + BALANCED_WITHIN_S
    after_s = balanced_after(moments, ready, low=LOW, high=HIGH, window_s=_WINDOW_S, until=end)
    settled = shares(moments, end, end + _SETTLED_S)
    held = after_s is not None and all(LOW <= part <= HIGH for part in settled.values())
    seen = f"{told(settled)}, since {after_s:.0f} s" if after_s is not None else f"{told(settled)} after 30 s"
    report(
        Row(
            "shares of the four decoders",
            f"15-35 % each, within {BALANCED_WITHIN_S:.0f} s of the last being ready",
            seen,
            held,
        )
    )


async def _add_encoder(stack: Stack, people: Traffic, report: Report) -> None:
    def work() -> tuple[float, Moments]:
        new = stack.add("encoder", 2)
        ready = _ready_at(stack, "encoder", "encoder serves", new)
        stack.pause(ready + BALANCED_WITHIN_S + _SETTLED_S - time.time())
        return ready, _moments(stack, "encoder", "image encoded")

    (ready, moments), requests = await people.during(work)
    report(_failures("encoders 1→2 under load", requests))
    end = ready + BALANCED_WITHIN_S
    settled = shares(moments, end, end + _SETTLED_S)
    report(
        Row(
            "shares of the two encoders",
            "over 20 % each, within 30 s of the second being ready",
            told(settled),
            all(part > 0.2 for part in settled.values()),
        )
    )


async def _kill(stack: Stack, people: Traffic, report: Report, service: str, what: str) -> None:
    def work() -> float:
        stack.pause(_WINDOW_S)
        container = stack.containers(service)[0]
        back_s = stack.kill(container)
        stack.wait_healthy(container)
        stack.pause(_SETTLED_S)
        return back_s

    back_s, requests = await people.during(work)
    report(_failures(f"{what} killed; started again after {back_s:.1f} s", requests))


async def _shrink(stack: Stack, people: Traffic, report: Report, service: str, what: str) -> None:
    def work() -> dict[str, int]:
        stack.pause(_WINDOW_S)
        statuses = stack.shrink(service, 1)
        stack.pause(_SETTLED_S)
        return statuses

    statuses, requests = await people.during(work)
    report(_failures(f"{what} under load", requests))
    seen = ", ".join(str(status) for status in statuses.values())
    report(
        Row(
            f"the {service}s that left",
            "each drained and ended with 0 within its grace period",
            f"ended with {seen}",
            set(statuses.values()) == {0},
        )
    )


async def _lose_redis(stack: Stack, people: Traffic, report: Report) -> None:
    """Stop Redis and start it again, empty; then kill it, so that its restart policy brings it back."""

    def stop_and_start() -> tuple[float, float]:
        stack.pause(_WINDOW_S)
        lost, back = stack.interrupt("redis", away_s=_AWAY_S)
        stack.pause(2 * RECOVERED_WITHIN_S)
        return lost, back

    def kill() -> None:
        stack.kill(stack.containers("redis")[0])
        stack.pause(2 * RECOVERED_WITHIN_S)

    (lost, back), requests, probes = await _probed(people, stop_and_start)
    report(_failures(f"Redis stopped for {back - lost:.0f} s: requests that bring their picture", requests))
    meanwhile = [probe for probe in probes if at(probe) > lost and at(probe) + probe.seconds < back]
    other = [probe for probe in meanwhile if probe.answer.status != StoreUnavailable.reason]
    report(
        Row(
            "the same: requests by name alone, meanwhile",
            "503 STORE_UNAVAILABLE",
            f"{len(meanwhile) - len(other)} of {len(meanwhile)}",
            bool(meanwhile) and not other,
        )
    )
    report(_recovery("Redis started again, empty", stack, probes))

    _, requests, probes = await _probed(people, kill)
    report(_failures("Redis killed: requests that bring their picture", requests))
    report(_recovery("Redis killed, and started again by its restart policy", stack, probes))


async def _probed(people: Traffic, action: Callable[[], _T]) -> tuple[_T, list[Request], list[Request]]:
    done = asyncio.Event()
    probing = asyncio.ensure_future(people.probe_names(done))
    try:
        returned, requests = await people.during(action, with_pictures_only=True)
    finally:
        done.set()
        probes = await probing
    return returned, requests, probes


def _recovery(done: str, stack: Stack, probes: Sequence[Request]) -> Row:
    """Say when requests by name alone were answered again for good, after Redis was."""
    ready = stack.redis_ready_at()[-1]
    later = [probe for probe in probes if at(probe) + probe.seconds > ready]
    failed = [at(probe) + probe.seconds - ready for probe in later if not probe.ok]
    fine = [at(probe) + probe.seconds - ready for probe in later if probe.ok]
    # What is found by name has been stored by then, in a Redis that came back empty.
    recovered_s = min((after for after in fine if after > max(failed, default=0.0)), default=math.inf)
    kinds = {probe.answer.status for probe in later} - {"OK", StoreUnavailable.reason, EmbeddingNotFound.reason}
    seen = f"{recovered_s:.1f} s" + (f", but {', '.join(sorted(kinds))}" if kinds else "")
    return Row(
        done,
        f"pictures are found by name within {RECOVERED_WITHIN_S:.0f} s of its being back",
        seen,
        recovered_s <= RECOVERED_WITHIN_S and not kinds,
    )


def _confinement(stack: Stack) -> Row:
    """Look at the processes themselves, not at what the compose file says."""
    wrong = []
    for service in ("redis", "encoder", "decoder", "gateway"):
        (container,) = stack.containers(service)
        status = stack.process_status(container)
        if status["Uid"].split()[0] == "0" or int(status["CapEff"], 16) or int(status["CapBnd"], 16):
            wrong.append(f"{service} is root or has capabilities")
        if status["NoNewPrivs"] != "1":
            wrong.append(f"{service} may gain privileges")
        if not stack.is_read_only(container):
            wrong.append(f"{service} can write to its file system")
        if not stack.has_limits(container):
            wrong.append(f"{service} has no limit on memory or processes")
        if stack.has_way_out(container) != (service in ("encoder", "gateway")):
            wrong.append(f"{service} has the wrong networks")
    published = stack.published()
    if published.keys() != {"gateway"} or not all(address.startswith("127.0.0.1:") for address in published["gateway"]):
        wrong.append(f"published: {published}")
    return Row(
        "looked at the running containers",
        "no root, no capabilities, read-only, bounded in memory and processes, no way out of Redis and decoder, one "
        "port published",
        "; ".join(wrong) or "so",
        not wrong,
    )


def _failures(done: str, requests: Sequence[Request]) -> Row:
    failed = [request for request in requests if not request.ok]
    kinds = ", ".join(sorted({f"{request.answer.status} {request.answer.code}".strip() for request in failed}))
    seen = f"{len(failed)} of {len(requests)}" + (f" ({kinds})" if kinds else "")
    return Row(done, "0 failed requests", seen, bool(requests) and not failed)


def _ready_at(stack: Stack, service: str, event: str, containers: Sequence[str]) -> float:
    """Return when the last of some new containers was ready, in seconds since the epoch."""
    stack.wait_healthy(*containers)
    events = stack.events(service, event)
    for container in containers:
        if not events[container]:
            raise CommandFailed(f"{container} is healthy, but has not logged '{event}'")
    return max(float(events[container][-1]["at"]) for container in containers)


def _moments(stack: Stack, service: str, event: str) -> Moments:
    return {name: [float(one["at"]) for one in events] for name, events in stack.events(service, event).items()}
