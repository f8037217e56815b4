"""The queue in front of the device: pictures that wait together are embedded together.

One thread owns the device. Whenever it is free it takes what is queued, up to a batch, and never waits for more: a
timer would delay the first picture and gain nothing that the next batch does not. The queue is bounded in pictures and
in bytes. Pictures in bulk wait while there are others, and leave them half of the room.

When a pass fails, a blank picture tells whether the picture or the device is at fault. While the device is, nothing is
accepted, and the blank picture is tried again from time to time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog

from encoder_service import metrics
from encoder_service.limits import QueueLimits
from sam.errors import DeadlineExceeded, EncoderUnavailable, InternalError, Overloaded, SamovarError
from sam.geometry import INPUT_SIDE
from sam.metrics import REFUSALS

log = structlog.get_logger("encoder_service.batching")

Embed = Callable[[Sequence[npt.NDArray[np.uint8]]], npt.NDArray[np.float32]]
"""Embeds B resized pictures, HxWx3 uint8, to Bx256x64x64 float32. Called on the device's thread only."""

# Weight of the newest pass in the running mean of seconds per picture, from which `Retry-After` is estimated: high
# enough to follow a change of load within a few passes.
_NEWEST = 0.3

PROBE_INTERVAL_S = 5.0
"""How often a failing device is tried again, in seconds."""


@dataclass(frozen=True)
class Embedded:
    """What the device made of one picture."""

    embedding: npt.NDArray[np.float32]
    """The image embedding, 1x256x64x64."""

    queue_s: float
    """Seconds between being queued and being started."""

    encode_s: float
    """Seconds that the pass took of which the picture was part."""


@dataclass(eq=False)
class Ticket:
    """What the owner of a queued picture may look at, and say."""

    started: bool = False
    """Whether the device has taken the picture: from then on giving it up saves nothing."""

    bulk: bool = False
    """Whether others go first. May be taken back while the picture waits."""


@dataclass(eq=False)
class _Entry:
    image: npt.NDArray[np.uint8]
    ticket: Ticket
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Embedded]
    queued_at: float


class DeviceQueue:
    """Gives pictures from any number of tasks to one device, in order of arrival."""

    def __init__(
        self,
        embed: Embed,
        batch_sizes: Sequence[int],
        limits: QueueLimits,
        *,
        on_failing: Callable[[bool], None] | None = None,
        probe_interval_s: float = PROBE_INTERVAL_S,
    ) -> None:
        """Start the device's thread.

        Args:
            embed: the model.
            batch_sizes: the sizes of the batches to form; must contain 1. A batch is the largest of them for which
                enough is queued.
            limits: the bounds of the queue.
            on_failing: told, on the device's thread, when the device starts to fail and when it works again.
            probe_interval_s: how often a failing device is tried again, in seconds.
        """
        if min(batch_sizes) != 1:
            raise ValueError("the batch sizes must contain 1")
        self._embed = embed
        self._batch_sizes = sorted(batch_sizes, reverse=True)
        self._limits = limits
        self._refusals = REFUSALS.labels("encoder_queue")
        self._changed = threading.Condition()
        self._entries: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._closing = False
        self._seconds_per_image = 0.0
        self._blank = np.zeros((INPUT_SIDE, INPUT_SIDE, 3), dtype=np.uint8)
        self._on_failing = on_failing
        self._probe_interval_s = probe_interval_s
        self.failing = False
        """Whether the device fails on any picture."""
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of pictures that wait."""
        return len(self._entries)

    def check_room(self, further: int, *, bulk: bool = False) -> None:
        """Return if one more picture would find a place after `further` others that are on their way here.

        Raises:
            Overloaded: it would not.
        """
        if self._is_full(len(self._entries) + further, self._queued_bytes, bulk=bulk):
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
        entry = _Entry(image, ticket or Ticket(), deadline, loop, loop.create_future(), time.monotonic())
        self._append(entry)
        try:
            remaining = None if deadline is None else deadline - time.monotonic()
            async with asyncio.timeout(remaining):
                return await entry.future
        except TimeoutError:
            raise _too_late() from None
        finally:
            self._discard(entry)

    async def close(self) -> None:
        """Take nothing more, finish what is queued, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _append(self, entry: _Entry) -> None:
        with self._changed:
            if self._closing:
                raise EncoderUnavailable("This encoder is shutting down. Ask another, or try again.")
            if self.failing:
                raise _device_fails()
            if self._is_full(len(self._entries), self._queued_bytes + entry.image.nbytes, bulk=entry.ticket.bulk):
                raise self._overloaded()
            self._entries.append(entry)
            self._queued_bytes += entry.image.nbytes
            self._tell_length()
            self._changed.notify()

    def _tell_length(self) -> None:
        metrics.QUEUED_IMAGES.set(len(self._entries))
        metrics.QUEUED_BYTES.set(self._queued_bytes)

    def _is_full(self, images: int, size: int, *, bulk: bool) -> bool:
        """Return whether nothing fits behind so many pictures, or so many bytes are too many."""
        if bulk and images:
            # Half of the room is for others; but one picture may wait in a queue however small.
            return images >= self._limits.max_images // 2 or size > self._limits.max_bytes // 2
        return images >= self._limits.max_images or size > self._limits.max_bytes

    def _overloaded(self) -> Overloaded:
        self._refusals.inc()
        return Overloaded(
            "Too many images wait for the image encoder. Try again later.",
            retry_after_s=max(1.0, len(self._entries) * self._seconds_per_image),
        )

    def _discard(self, entry: _Entry) -> None:
        """Take an entry out of the queue if it is still there."""
        with self._changed:
            if entry in self._entries:
                self._entries.remove(entry)
                self._queued_bytes -= entry.image.nbytes
                self._tell_length()

    def _serve(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._run(batch)
            elif self.failing:
                self._probe()

    def _next_batch(self) -> list[_Entry] | None:
        """Wait for entries and take a batch; None at the end, empty if all were too late or it is time to probe."""
        with self._changed:
            patience = self._probe_interval_s if self.failing else None
            if not self._changed.wait_for(lambda: self._entries or self._closing, patience):
                return []
            if not self._entries:
                return None
            now = time.monotonic()
            # A deadline that has passed is reported by the caller's own timer.
            waiting = [e for e in self._entries if e.deadline is None or e.deadline > now]
            # Stable: in each of the two groups by arrival. Asked now, since a picture may have become urgent meanwhile.
            waiting.sort(key=lambda entry: entry.ticket.bulk)
            size = next((s for s in self._batch_sizes if s <= len(waiting)), 0)
            for entry in waiting[:size]:
                entry.ticket.started = True
            self._entries = deque(waiting[size:])
            self._queued_bytes = sum(entry.image.nbytes for entry in self._entries)
            self._tell_length()
            return waiting[:size]

    def _run(self, batch: list[_Entry]) -> None:
        started = time.monotonic()
        try:
            embeddings = self._computed([entry.image for entry in batch])
        except Exception:
            metrics.FAILED_PASSES.inc()
            if len(batch) > 1:
                # One picture must not fail its neighbours: each gets a pass of its own.
                log.exception("a batch failed; its pictures are tried one by one", size=len(batch))
                for entry in batch:
                    if not entry.future.done():  # Its caller may have gone meanwhile.
                        self._run([entry])
                return
            log.exception("the image encoder failed")
            message = "The image encoder failed on this image. Try again; if it fails again, report it."
            _settle(batch[0], InternalError(message))
            self._probe()
            return
        seconds = time.monotonic() - started
        metrics.ENCODE_SECONDS.observe(seconds)
        metrics.BATCH_IMAGES.observe(len(batch))
        newest = seconds / len(batch)
        self._seconds_per_image += _NEWEST * (newest - self._seconds_per_image)
        for index, entry in enumerate(batch):
            queue_s = started - entry.queued_at
            metrics.QUEUE_SECONDS.observe(queue_s)
            _settle(entry, Embedded(embeddings[index : index + 1], queue_s, seconds))

    def _computed(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        started = time.monotonic()
        try:
            return self._embed(images)
        finally:
            metrics.DEVICE_BUSY_SECONDS.inc(time.monotonic() - started)

    def _probe(self) -> None:
        """Find out whether the device works; if it does not, let go of all who wait for it."""
        try:
            self._computed([self._blank])
            failing = False
        except Exception:
            log.exception("the image encoder fails on a blank picture, too")
            failing = True
        with self._changed:
            changed = failing != self.failing
            self.failing = failing
            abandoned = list(self._entries) if failing else []
            if failing:
                self._entries.clear()
                self._queued_bytes = 0
                self._tell_length()
            metrics.DEVICE_FAILING.set(failing)
        for entry in abandoned:
            _settle(entry, _device_fails())
        if changed and self._on_failing is not None:
            self._on_failing(failing)


def _settle(entry: _Entry, outcome: Embedded | SamovarError) -> None:
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
