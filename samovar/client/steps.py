"""Calls as steps that somebody else takes: what the blocking and the asynchronous clients have in common.

A call is a generator. It yields what is to be done (a request to send, a pause to make), and is sent what came of it.
It knows no socket and no clock but the one it is given, so that one body of code serves both kinds of client and is
tested without either.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from samovar.client.errors import DeadlineExceeded, Overloaded, ServerUnreachable, Unavailable

T = TypeVar("T")

Steps: TypeAlias = Generator[Any, Any, T]
"""Yields `Wait`s and requests of the transport at hand; a `Wait` is sent None, a request its answer."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause of so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of a call, over all of its attempts."""

    at: float
    timeout_s: float
    clock: Callable[[], float]

    @property
    def left_s(self) -> float:
        """What is left, in seconds; not positive once it has passed."""
        return self.at - self.clock()


@dataclass(frozen=True, slots=True)
class Patience:
    """How failed attempts are repeated. Every call of the API may be: none has an effect that a second one adds to.

    A server that says "not now" is asked again until the deadline, not before the time it named. One that does not
    answer at all is tried a few times: its address may simply be wrong.

    Attributes:
        timeout_s: how long a call may take, all attempts together.
        unanswered_attempts: how often a server that does not answer is tried.
        first_pause_s: the pause after the first failure; it doubles with each, up to `longest_pause_s`.
        longest_pause_s: see there.
        clock: seconds that only grow.
        chance: a number from 0 to 1, to keep clients that failed together from coming back together.
    """

    timeout_s: float = 120.0
    unanswered_attempts: int = 4
    first_pause_s: float = 0.2
    longest_pause_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Return the end of a call that begins now."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        return Deadline(self.clock() + limit, limit, self.clock)

    def retried(
        self, attempt: Callable[[], Steps[T]], deadline: Deadline, final: tuple[type[Exception], ...] = ()
    ) -> Steps[T]:
        """Make attempts until one succeeds, fails for good, or no time is left for another.

        Args:
            attempt: makes one.
            deadline: when the last must be over.
            final: errors for which the caller has a better remedy than waiting.

        Raises:
            DeadlineExceeded: the deadline passed before the first attempt was over.
            SamovarError, ClientError: what the last attempt that was not cut short by the deadline failed with.
        """
        pause_s = self.first_pause_s
        unanswered = 0
        failure: Exception | None = None
        while True:
            if deadline.left_s <= 0:
                raise failure or DeadlineExceeded(f"There was no answer within {deadline.timeout_s:g} s.")
            try:
                return (yield from attempt())
            except final:
                raise
            except DeadlineExceeded as cut_short:
                # The last attempt may have had moments only, and would say no more than that. The one before says why.
                if failure is None:
                    raise
                raise failure from cut_short
            except (Overloaded, Unavailable) as error:
                wait_s = max(error.retry_after_s or 0.0, pause_s)
                if deadline.left_s <= wait_s:
                    raise
                failure = error
            except ServerUnreachable as error:
                unanswered += 1
                wait_s, failure = pause_s, error
                if unanswered >= self.unanswered_attempts or deadline.left_s <= wait_s:
                    raise
            # Up to a quarter more, never less: the server may have named the time.
            yield Wait(min(wait_s * (1 + self.chance() / 4), max(wait_s, deadline.left_s)))
            pause_s = min(2 * pause_s, self.longest_pause_s)


def drive(steps: Steps[T], send: Callable[[Any], Any]) -> T:
    """Take the steps of a call, one after another, in this thread.

    Args:
        steps: the call.
        send: sends a request and returns its answer. What it raises is the call's to deal with.
    """
    step, value = _advance(steps, None, None)
    while step is not None:
        answer, error = None, None
        if isinstance(step, Wait):
            time.sleep(step.seconds)
        else:
            try:
                answer = send(step)
            except Exception as raised:
                error = raised
        step, value = _advance(steps, answer, error)
    result: T = value
    return result


async def drive_async(steps: Steps[T], send: Callable[[Any], Awaitable[Any]]) -> T:
    """Take the steps of a call on an event loop; see `drive`.

    Reading, packing and unpacking pictures is work, and the loop only waits: each stretch of it is done in a thread.
    """
    step, value = await asyncio.to_thread(_advance, steps, None, None)
    while step is not None:
        answer, error = None, None
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
        else:
            try:
                answer = await send(step)
            except Exception as raised:
                error = raised
        step, value = await asyncio.to_thread(_advance, steps, answer, error)
    result: T = value
    return result


def _advance(steps: Steps[T], answer: Any, error: Exception | None) -> tuple[Any, Any]:
    """Return the next step and None, or None and what the call returns."""
    try:
        return (steps.send(answer) if error is None else steps.throw(error)), None
    except StopIteration as done:
        return None, done.value
