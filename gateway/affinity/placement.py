"""Which of several replicas takes a call: rendezvous hashing with bounded loads.

Each pair of a picture and a replica has a score, and the replica with the highest takes the picture's calls (Thaler and
Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking, 1998). Gateways
agree on it without talking to one another, and a replica that comes or goes moves the pictures that it takes or had,
and no others. A replica that has more than its share leaves what is above it to the next in the picture's order (after
Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

UNDER_WAY_BOUND = 1.25
"""How many times its share of the calls under way a replica may have: the paper's c. It is what a replica that is slow,
or stands still, runs into."""

SPARE_CALLS = 1
"""And how many more than that: a decoder has more cores than one, and two clicks at once are no crowd."""

RECENT_BOUND = 1.06
"""How many times its share of recent calls a replica may have. Calls under way say nothing where each is answered
before the next one comes; this keeps replicas level then. docs/decisions/0008-image-affinity.md has what it costs."""

SPARE_RECENT = 2.0
"""And how many calls more than that, or chance alone would be a crowd where there are few."""

RECENT_S = 20.0
"""For how long a call counts as recent, in seconds: its weight falls to a third in that time."""

MOST_HOMES = 16_384
"""How many pictures it is remembered of where they are read; some 3 MB."""

_RESCALED_AT = 1e9

# Those of splitmix64's last steps: each bit of what goes in changes half of what comes out.
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(eq=False)
class Placeable:
    """A replica, as far as placing calls goes.

    Attributes:
        name: what every gateway calls it.
        under_way: how many of this process' calls it has not answered yet.
        recent: the weights of its recent calls, in the unit of its `Placement`.
        placed: whether new calls are placed on it.
        since: the change of the replicas with which that began.
    """

    name: str
    under_way: int = 0
    recent: float = 0.0
    placed: bool = False
    since: int = 0


ReplicaT = TypeVar("ReplicaT", bound=Placeable)


class Placement(Generic[ReplicaT]):
    """Places calls on the replicas that can take them. Used from one event loop only.

    A choice costs a few microseconds; some tens for a picture that is new here, with a thousand replicas as with two.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without replicas; `clock` tells the time in seconds."""
        self._clock = clock
        self._epoch = clock()
        self._replicas: Sequence[ReplicaT] = ()
        self._seeds: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._homes: dict[str, tuple[ReplicaT, int]] = {}
        self._changes = 0
        self._under_way = 0
        self._recent = 0.0

    @property
    def replicas(self) -> Sequence[ReplicaT]:
        """Those that take calls now."""
        return self._replicas

    def set(self, replicas: Sequence[ReplicaT]) -> None:
        """Place calls on these from now on.

        One that is new begins as if it had had its share: it takes its own pictures at once, and is not flooded with
        those of others.
        """
        self._changes += 1
        stay = [replica for replica in replicas if replica.placed]
        fair = sum(replica.recent for replica in stay) / len(stay) if stay else 0.0
        for replica in replicas:
            if not replica.placed:
                replica.recent, replica.since = fair, self._changes
        for replica in self._replicas:
            replica.placed = False
        for replica in replicas:
            replica.placed = True
        self._replicas = tuple(replicas)
        self._seeds = np.array([_hash64(replica.name) for replica in replicas], np.uint64)
        self._under_way = sum(replica.under_way for replica in replicas)
        self._recent = sum(replica.recent for replica in replicas)

    def candidates(self, picture: str) -> Iterator[ReplicaT]:
        """Yield the replicas to ask about a picture, the best first.

        That is the one that it was placed on last, or else the one with the highest score, if it has room. Then, by
        their scores, those with no more to do than their share, and at last those that answer at all. Where replicas
        have come or gone while one was asked, those that are there now follow.
        """
        asked: list[ReplicaT] = []
        changes = None
        while changes != self._changes:
            changes = self._changes
            for replica in self._in_order(picture):
                if replica not in asked:
                    asked.append(replica)
                    yield replica
                    if changes != self._changes:
                        break

    def _in_order(self, picture: str) -> Iterator[ReplicaT]:
        """Yield candidates as long as no replica comes or goes."""
        home, known = self._homes.get(picture, (None, 0))
        best = None
        if home is not None and known == self._changes and self._has_room(home):
            best = home
            yield best
        for replica in self._ranked(picture, home, known):
            if best is None:
                # Those after it are asked where it is out of reach for a moment, to which its pictures do not move.
                best = self._remembered(picture, replica)
                yield best
            elif replica is not best:
                yield replica

    def begin(self, replica: ReplicaT) -> None:
        """Count a call that is sent to a replica."""
        weight = self._weight()
        replica.under_way += 1
        replica.recent += weight
        if replica.placed:
            self._under_way += 1
            self._recent += weight

    def end(self, replica: ReplicaT) -> None:
        """Note that it has been answered, or given up."""
        replica.under_way -= 1
        if replica.placed:
            self._under_way -= 1

    def _ranked(self, picture: str, home: ReplicaT | None, known: int) -> Iterator[ReplicaT]:
        if not self._replicas:
            return
        scores = _mixed(self._seeds ^ np.uint64(_hash64(picture)))
        first = self._replicas[int(scores.argmax())]
        # Where others have come or gone, a picture moves if its own has gone, or to one that has come, and else stays.
        if home is not None and home.placed and first.since <= known and self._has_room(home):
            yield home
        if self._has_room(first):
            yield first
        full = []
        for index in np.argsort(scores)[::-1]:
            replica = self._replicas[index]
            if not self._is_below_its_share(replica):
                full.append(replica)
            elif replica is not first:
                yield replica
        # Where one stands still, all others have more than their share, and are to have it.
        yield from filter(self._is_answering, full)

    def _remembered(self, picture: str, replica: ReplicaT) -> ReplicaT:
        if len(self._homes) >= MOST_HOMES:
            del self._homes[next(iter(self._homes))]
        self._homes[picture] = replica, self._changes
        return replica

    def _has_room(self, replica: ReplicaT) -> bool:
        allowed = RECENT_BOUND * self._recent / len(self._replicas) + SPARE_RECENT * self._weight()
        return replica.recent < allowed and self._is_answering(replica)

    def _is_answering(self, replica: ReplicaT) -> bool:
        most = math.ceil(UNDER_WAY_BOUND * (self._under_way + 1) / len(self._replicas)) + SPARE_CALLS
        return replica.under_way < most

    def _is_below_its_share(self, replica: ReplicaT) -> bool:
        count = len(self._replicas)
        # The sum was rounded on another way than its parts.
        recent = self._recent * (1 + 1e-9)
        return replica.under_way * count <= self._under_way and replica.recent * count <= recent

    def _weight(self) -> float:
        """Return what a call counts for now: instead of old ones that fade, new ones weigh more."""
        weight = math.exp((self._clock() - self._epoch) / RECENT_S)
        if weight < _RESCALED_AT:
            return weight
        self._epoch = self._clock()
        for replica in self._replicas:
            replica.recent /= weight
        self._recent = sum(replica.recent for replica in self._replicas)
        return 1.0


def _hash64(text: str) -> int:
    """Return 64 bits that are the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS[1]
    return values ^ (values >> _SHIFTS[2])
