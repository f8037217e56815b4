"""The queue in front of the device: pictures that wait together are embedded together.

Whenever the device has room, what is queued is started, up to a batch, and nothing waits for more: a timer would delay
the first picture and gain nothing that the next batch does not. A device that can be given a batch while it computes
another has two in flight, so that it need not wait for pictures to be sent and results to be fetched.

One thread decides what is started and what becomes of it; a second one does nothing but wait for results, in the order
of their start. When a pass fails, its pictures are tried one by one, and a blank one tells whether the picture or the
device is at fault; all of that with nothing else in flight. While the device is at fault nothing is accepted, and the
blank picture is tried again from time to time.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from encoder_service.limits import QueueLimits
from encoder_service.waiting import Embedded, Entry, Ticket, WaitingPictures
from sam.errors import DeadlineExceeded, EncoderUnavailable, InternalError, Overloaded, SamovarError
from sam.geometry import INPUT_SIDE

log = logging.getLogger("encoder_service.batching")

Images = Sequence[npt.NDArray[np.uint8]]
"""B resized pictures, HxWx3 uint8, RGB."""

Finish = Callable[[], npt.NDArray[np.float32]]
"""Waits for a pass, and returns its embeddings, Bx256x64x64 float32. Called once, on the thread for results."""

Start = Callable[[Images], Finish]
"""Starts a pass. Called on the device's thread."""

# Weight of the newest pass in the running mean of seconds per picture, from which `Retry-After` is estimated: high
# enough to follow a change of load within a few passes.
_NEWEST = 0.3

PROBE_INTERVAL_S = 5.0
"""How often a failing device is tried again, in seconds."""


def at_once(embed: Callable[[Images], npt.NDArray[np.float32]]) -> Start:
    """Return a way to start passes that are all computed on the thread for results."""
    return lambda images: partial(embed, images)


class QueueReport:
    """Is told what happens; does nothing about it. Methods are called on any thread, and shall return at once."""

    def waiting(self, images: int, nbytes: int) -> None:
        """So much waits from now on."""

    def refused(self) -> None:
        """A picture found the queue full."""

    def busy(self, seconds: float) -> None:
        """The device was busy for so long more, with whatever."""

    def computed(self, pass_s: float, queue_s: Sequence[float]) -> None:
        """A pass took so long, and its pictures had waited so long for it."""

    def failed(self, images: int, cause: BaseException) -> None:
        """A pass of so many pictures failed; none: of the blank one."""

    def failing(self, failing: bool) -> None:
        """The device fails on any picture, or does not."""


@dataclass(eq=False)
class _Pass:
    entries: list[Entry]
    """Those whose pictures it is; none if it is the blank one's."""

    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    finish: Finish | None = None
    embeddings: npt.NDArray[np.float32] | None = None
    error: Exception | None = None


class DeviceQueue:
    """Gives pictures from any number of tasks to one device, in order of arrival."""

    def __init__(
        self,
        start: Start,
        batch_sizes: Sequence[int],
        limits: QueueLimits,
        *,
        in_flight: int = 1,
        report: QueueReport | None = None,
        on_failing: Callable[[bool], None] | None = None,
        probe_interval_s: float = PROBE_INTERVAL_S,
    ) -> None:
        """Start the device's threads.

        Args:
            start: the model.
            batch_sizes: the sizes of the batches to form; must contain 1. A batch is the largest of them for which
                enough is queued.
            limits: the bounds of the queue.
            in_flight: how many passes may have been started and not be finished.
            report: told what happens.
            on_failing: told, on the device's thread, when the device starts to fail and when it works again.
            probe_interval_s: how often a failing device is tried again, in seconds.
        """
        self._waiting = WaitingPictures(batch_sizes, limits)
        self._start = start
        self._in_flight = in_flight
        self._report = report or QueueReport()
        self._on_failing = on_failing
        self._probe_interval_s = probe_interval_s
        self._blank = np.zeros((INPUT_SIDE, INPUT_SIDE, 3), dtype=np.uint8)
        self._changed = threading.Condition()
        self._closing = False
        self._running = 0
        self._over: deque[_Pass] = deque()
        # What failed together, to be tried one by one; and whether the device is to be tried with the blank picture.
        self._again: deque[Entry] = deque()
        self._doubted = False
        # Whether what runs is one of these.
        self._alone = False
        self._last_end = 0.0
        self._seconds_per_image = 0.0
        self.failing = False
        """Whether the device fails on any picture."""
        self._started: queue.SimpleQueue[_Pass | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name="device", daemon=True),
            threading.Thread(target=self._wait_for_results, name="results", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Return the number of pictures that wait."""
        return len(self._waiting)

    def check_room(self, further: int, *, bulk: bool = False) -> None:
        """Return if one more picture would find a place after `further` others that are on their way here.

        Raises:
            Overloaded: it would not.
        """
        if self._waiting.is_full(further, 0, bulk=bulk):
            raise self._overloaded()

    async def embed(
        self, image: npt.NDArray[np.uint8], *, deadline: float | None = None, ticket: Ticket | None = None
    ) -> Embedded:
        """Queue a picture and wait for its embedding.

        A caller that is cancelled, or whose deadline passes, frees its place at once; what has not been started by then
        never is.

        Args:
            image: a resized picture, HxWx3 uint8, RGB.
            deadline: on the clock of `time.monotonic`, in seconds.
            ticket: says whether the device has started.

        Raises:
            Overloaded: the queue is full.
            DeadlineExceeded: the deadline passed first.
            EncoderUnavailable: the device is failing, or the queue is closing.
            InternalError: the model failed on this picture; the log says how.
        """
        loop = asyncio.get_running_loop()
        entry = Entry(image, ticket or Ticket(), deadline, loop, loop.create_future(), time.monotonic())
        self._append(entry)
        try:
            remaining = None if deadline is None else deadline - time.monotonic()
            async with asyncio.timeout(remaining):
                return await entry.future
        except TimeoutError:
            raise _too_late() from None
        finally:
            with self._changed:
                if self._waiting.discard(entry):
                    self._tell_length()

    async def close(self) -> None:
        """Take nothing more, finish what is queued, end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _append(self, entry: Entry) -> None:
        with self._changed:
            if self._closing:
                raise EncoderUnavailable("This encoder is shutting down. Ask another, or try again.")
            if self.failing:
                raise _device_fails()
            if self._waiting.is_full(0, entry.image.nbytes, bulk=entry.ticket.bulk):
                raise self._overloaded()
            self._waiting.append(entry)
            self._tell_length()
            self._changed.notify()

    def _tell_length(self) -> None:
        self._report.waiting(len(self._waiting), self._waiting.nbytes)

    def _overloaded(self) -> Overloaded:
        self._report.refused()
        return Overloaded(
            "Too many images wait for the image encoder. Try again later.",
            retry_after_s=max(1.0, len(self._waiting) * self._seconds_per_image),
        )

    def _serve(self) -> None:
        while (step := self._next_step()) is not None:
            step()
        self._started.put(None)

    def _next_step(self) -> Callable[[], None] | None:
        """Wait until there is something to do and return it; None at the end."""
        with self._changed:
            while True:
                if self._over:
                    self._running -= 1
                    return partial(self._conclude, self._over.popleft())
                if self._doubted or self._again:
                    if not self._running:
                        self._alone = True
                        return self._begin_blank if self._doubted else partial(self._begin, [self._again.popleft()])
                elif self._running < self._in_flight and not (self._alone and self._running):
                    self._alone = False
                    batch = self._waiting.take_batch(self._seconds_per_image)
                    self._tell_length()
                    if batch:
                        return partial(self._begin, batch)
                    if self._closing and not self._running:
                        return None
                if not self._changed.wait(self._probe_interval_s if self.failing else None):
                    self._doubted = True

    def _begin_blank(self) -> None:
        self._doubted = False
        self._begin([])

    def _begin(self, entries: list[Entry]) -> None:
        this = _Pass(entries)
        try:
            this.finish = self._start([entry.image for entry in entries] or [self._blank])
        except Exception as error:
            this.error, this.ended = error, time.monotonic()
            self._conclude(this)
            return
        with self._changed:
            self._running += 1
        self._started.put(this)

    def _wait_for_results(self) -> None:
        while (this := self._started.get()) is not None:
            if this.finish is not None:
                try:
                    this.embeddings = this.finish()
                except Exception as error:
                    this.error = error
            this.ended = time.monotonic()
            with self._changed:
                self._over.append(this)
                self._changed.notify()

    def _conclude(self, this: _Pass) -> None:
        # Not from its start, if it was waiting for the one before: the device is busy once, and that was its queue.
        began = max(this.started, self._last_end)
        # One that failed to start may be concluded before one that ended earlier.
        seconds = max(0.0, this.ended - began)
        self._last_end = max(self._last_end, this.ended)
        self._report.busy(seconds)
        if this.error is not None:
            self._report.failed(len(this.entries), this.error)
        if not this.entries:
            self._judge(failing=this.error is not None)
        elif this.embeddings is None:
            self._fail(this.entries)
        else:
            self._seconds_per_image += _NEWEST * (seconds / len(this.entries) - self._seconds_per_image)
            waited = [began - entry.queued_at for entry in this.entries]
            self._report.computed(seconds, waited)
            for index, (entry, queue_s) in enumerate(zip(this.entries, waited, strict=True)):
                _settle(entry, Embedded(this.embeddings[index : index + 1], queue_s, seconds))

    def _fail(self, entries: list[Entry]) -> None:
        """Try again what failed together, since one picture must not fail its neighbours, or give up what was alone."""
        if len(entries) == 1:
            message = "The image encoder failed on this image. Try again; if it fails again, report it."
            _settle(entries[0], InternalError(message))
            self._doubted = True
        else:
            # But for those whose callers have gone meanwhile.
            self._again.extend(entry for entry in entries if not entry.future.done())

    def _judge(self, *, failing: bool) -> None:
        """Take note of whether the device works; if it does not, let go of all who wait for it."""
        with self._changed:
            changed = failing != self.failing
            self.failing = failing
            abandoned = [*self._again, *self._waiting.take_all()] if failing else []
            if failing:
                self._again.clear()
                self._tell_length()
        self._report.failing(failing)
        for entry in abandoned:
            _settle(entry, _device_fails())
        if changed and self._on_failing is not None:
            self._on_failing(failing)


def _settle(entry: Entry, outcome: Embedded | SamovarError) -> None:
    """Hand an outcome to the task that waits for it, if it still does, on its own event loop."""

    def settle() -> None:
        if entry.future.done():
            return
        if isinstance(outcome, Embedded):
            entry.future.set_result(outcome)
        else:
            entry.future.set_exception(outcome)

    try:
        entry.loop.call_soon_threadsafe(settle)
    except RuntimeError:
        log.debug("the event loop that asked for an embedding is closed")


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The image could not be embedded before the deadline. Allow more time, or try when less waits."
    )


def _device_fails() -> EncoderUnavailable:
    return EncoderUnavailable("The device of this encoder fails. Ask another, or try again later.")
