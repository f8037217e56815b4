"""The threads that compute, and the queue in front of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from decoder_service.metrics import BUSY_SECONDS, QUEUE_SECONDS, QUEUED_TURNS, WORKERS
from decoder_service.team import solo_executor
from sam.errors import DeadlineExceeded
from sam.tracing import record

_Result = TypeVar("_Result")


class Done(NamedTuple, Generic[_Result]):
    """What some work returned.

    Attributes:
        result: its result.
        queued_s: how long it waited for a thread, in seconds.
    """

    result: _Result
    queued_s: float


class DecodePool:
    """Runs work in a fixed number of threads, in each of which torch computes alone; first come, first served.

    The queue is as long as callers let it be: they bound how many of them there are.
    """

    def __init__(self, workers: int) -> None:
        self._executor = solo_executor(workers, "decode")
        WORKERS.set(workers)

    async def run(self, work: Callable[[], _Result], deadline: float | None = None) -> Done[_Result]:
        """Run `work` in a thread. If the caller is cancelled before its turn, it is not started.

        Args:
            work: what to run.
            deadline: after this time of the monotonic clock it is not started; None: whenever its turn comes.

        Raises:
            DeadlineExceeded: its turn came too late.
        """
        asked = time.monotonic()
        started = 0.0

        def in_turn() -> Done[_Result]:
            nonlocal started
            started = time.monotonic()
            QUEUED_TURNS.dec()
            if deadline is not None and started >= deadline:
                raise DeadlineExceeded("The call's deadline passed before its turn came. Allow it more time.")
            QUEUE_SECONDS.observe(started - asked)
            try:
                return Done(work(), started - asked)
            finally:
                BUSY_SECONDS.inc(time.monotonic() - started)

        QUEUED_TURNS.inc()
        turn = self._executor.submit(in_turn)
        turn.add_done_callback(_leave_queue)
        try:
            return await asyncio.wrap_future(turn)
        finally:
            record("queue", asked, started or time.monotonic())

    def close(self) -> None:
        """Finish what has started, drop the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _leave_queue(turn: Future[Any]) -> None:
    """Count what was given up before its turn."""
    if turn.cancelled():
        QUEUED_TURNS.dec()
