"""Pictures that wait for the device: who comes next, and how many may wait.

The queue is bounded in pictures and in bytes. Pictures in bulk wait while there are others, and leave them half of the
room; they share no batch with others, and their batches stay short, since an urgent picture has to wait for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoder_service.limits import QueueLimits

BULK_PASS_S = 0.025
"""How long a pass of pictures in bulk may take, in seconds, if of several pictures. An urgent one waits for two."""


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
class Entry:
    """A picture, and who waits for it."""

    image: npt.NDArray[np.uint8]
    ticket: Ticket
    deadline: float | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Embedded]
    queued_at: float


class WaitingPictures:
    """The pictures that wait, in order of arrival. Not for several threads at once."""

    def __init__(self, batch_sizes: Sequence[int], limits: QueueLimits) -> None:
        """Take the bounds.

        Args:
            batch_sizes: the sizes of the batches to form; must contain 1.
            limits: how much may wait.
        """
        if min(batch_sizes) != 1:
            raise ValueError("the batch sizes must contain 1")
        self._batch_sizes = sorted(batch_sizes, reverse=True)
        self._limits = limits
        self._entries: list[Entry] = []
        self.nbytes = 0
        """The memory that holds the pictures, in bytes."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._entries)

    def is_full(self, further: int, further_bytes: int, *, bulk: bool) -> bool:
        """Return whether nothing fits behind so many more pictures, or so many more bytes are too many."""
        images, size = len(self._entries) + further, self.nbytes + further_bytes
        if bulk and images:
            # Half of the room is for others; but one picture may wait in a queue however small.
            return images >= self._limits.max_images // 2 or size > self._limits.max_bytes // 2
        return images >= self._limits.max_images or size > self._limits.max_bytes

    def append(self, entry: Entry) -> None:
        """Let a picture wait behind the others."""
        self._entries.append(entry)
        self.nbytes += entry.image.nbytes

    def discard(self, entry: Entry) -> bool:
        """Take a picture out; return whether it was still there."""
        if entry not in self._entries:
            return False
        self._entries.remove(entry)
        self.nbytes -= entry.image.nbytes
        return True

    def take_all(self) -> list[Entry]:
        """Take all pictures out."""
        taken, self._entries, self.nbytes = self._entries, [], 0
        return taken

    def take_batch(self, seconds_per_image: float) -> list[Entry]:
        """Take out the batch that is next: the largest size for which enough wait; empty if nobody waits in time.

        Args:
            seconds_per_image: how long one takes, about; 0 if that is not known.
        """
        now = time.monotonic()
        # A deadline that has passed is reported by the caller's own timer.
        in_time = [entry for entry in self._entries if entry.deadline is None or entry.deadline > now]
        # Asked now, since a picture may have become urgent meanwhile.
        group = [entry for entry in in_time if not entry.ticket.bulk]
        at_most = self._batch_sizes[0]
        if not group:
            group = in_time
            if seconds_per_image:
                at_most = max(1, int(BULK_PASS_S / seconds_per_image))
        size = next((size for size in self._batch_sizes if size <= min(len(group), at_most)), 0)
        batch = group[:size]
        for entry in batch:
            entry.ticket.started = True
        self._entries = [entry for entry in in_time if not entry.ticket.started]
        self.nbytes = sum(entry.image.nbytes for entry in self._entries)
        return batch
