"""Ways to let many requests loose, and to wait for what comes of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.faults.history import Request

_T = TypeVar("_T")


def now() -> float:
    """Return the event loop's time, which is that of `time.monotonic`."""
    return asyncio.get_running_loop().time()


async def comes_true(condition: Callable[[], bool | Awaitable[bool]], *, within_s: float) -> bool:
    """Wait for a condition; return whether it came true in time."""
    until = now() + within_s
    while True:
        true = condition()
        if await true if isinstance(true, Awaitable) else true:
            return True
        if now() > until:
            return False
        await asyncio.sleep(0.02)


async def at_once(count: int, ask: Callable[[int], Awaitable[_T]]) -> list[_T]:
    """Send `count` requests at the same time and wait for all answers."""
    return list(await asyncio.gather(*(ask(number) for number in range(count))))


async def steadily(
    rate: float,
    ask: Callable[[int], Awaitable[Request]],
    *,
    count: int | None = None,
    until: asyncio.Event | None = None,
) -> list[Request]:
    """Send requests at a fixed rate, whether or not earlier ones are answered; wait for all answers.

    Args:
        rate: requests a second.
        ask: sends the nth.
        count: how many; None: until the event is set.
        until: when to end, if that is earlier.
    """
    started = now()
    tasks: list[asyncio.Task[Request]] = []
    for number in itertools.count() if count is None else range(count):
        if until is not None and until.is_set():
            break
        if (early := started + number / rate - now()) > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.ensure_future(ask(number)))
    return list(await asyncio.gather(*tasks))
