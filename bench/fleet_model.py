"""A fleet as a queueing model: people click on pictures, decoders keep the latest, encoders batch new ones.

A sample of the decoders is simulated, event by event, with what reaches it, so that a fleet of any size takes seconds.
Where each click goes to any decoder, a decoder sees each click with a chance of one in their number. Where pictures are
placed, it sees those placed on it, and a part of the decoders with its part of the pictures is a fleet of its own; only
what overflows has fewer places to go, which a sample of eight does not show in full.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.affinity.placement import Placeable, Placement

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class People:
    """How pictures are clicked on.

    Attributes:
        pause_s: the mean time between two clicks of a person on one picture, in seconds.
        session_s: the mean time that a person stays with a picture, in seconds.
        openers: how many people open one picture, on average; the first brings it.
        within_s: within how many seconds of the first the others open it.
    """

    pause_s: float = 2.0
    session_s: float = 40.0
    openers: float = 3.0
    within_s: float = 120.0

    @property
    def clicks_per_picture(self) -> float:
        """All people's clicks on one picture, on average."""
        return self.openers * (1 + self.session_s / self.pause_s)

    @property
    def history_s(self) -> float:
        """How long before a moment a picture may have come that is clicked on at that moment, in seconds."""
        return self.within_s + 6 * self.session_s


@dataclass(frozen=True)
class Decoders:
    """The tier that answers clicks.

    Attributes:
        count: how many.
        cores: how many clicks one works on at once.
        decode_s: how long a click keeps a core, in seconds.
        load_s: how long reading an embedding out of the store and preparing it does so, in seconds.
        keeps: how many pictures one keeps, the least recently used out first.
        affinity: whether the gateways place pictures; else each click goes to any decoder.
        gateways: how many gateways there are, each with its own view of the decoders' loads.
        random_service: whether times vary as an exponential distribution does, or not at all.
    """

    count: int
    cores: int = 2
    decode_s: float = 0.03
    load_s: float = 0.010
    keeps: int = 256
    affinity: bool = True
    gateways: int = 1
    random_service: bool = False


@dataclass(frozen=True)
class Encoders:
    """The tier that embeds new pictures.

    Attributes:
        count: how many; each has its part of the pictures and its own queue.
        first_s: how long a batch of one takes, in seconds.
        next_s: how much longer each further picture makes it, in seconds.
        batch: the most pictures of one batch, which begins as soon as the device is free.
    """

    count: int
    first_s: float
    next_s: float
    batch: int = 8

    @property
    def pictures_per_s(self) -> float:
        """The most that one of them embeds, in pictures a second."""
        return self.batch / (self.first_s + (self.batch - 1) * self.next_s)


@dataclass(frozen=True)
class Seen:
    """What came of it.

    Attributes:
        reads_per_click: embeddings read out of the store for one click.
        busy: which part of their time the cores worked, from 0 to 1.
        waits_s: how long each click waited for a core, in seconds.
        busiest: how many times the mean the decoder with the most clicks had.
    """

    reads_per_click: float
    busy: float
    waits_s: Floats
    busiest: float


def clicks_at(
    people: People,
    clicks_per_s: float,
    part: float,
    *,
    by_picture: bool,
    until_s: float,
    rng: np.random.Generator,
) -> tuple[Floats, Ints]:
    """Return the clicks on a part of the decoders: when, in seconds from 0 on and in order, and on which picture.

    Args:
        people: how pictures are clicked on.
        clicks_per_s: those of the whole fleet.
        part: which part of the decoders is looked at, from 0 to 1.
        by_picture: whether its part are some of the pictures, with all of their clicks, or some of all clicks.
        until_s: when to end.
        rng: where chance comes from.
    """
    span_s = people.history_s + until_s
    pictures_per_s = clicks_per_s / people.clicks_per_picture * (part if by_picture else 1.0)
    came = rng.uniform(-people.history_s, until_s, rng.poisson(pictures_per_s * span_s))
    # At least one person opens a picture.
    openers = rng.geometric(1 / people.openers, len(came))
    picture = np.repeat(np.arange(len(came)), openers)
    first = np.concatenate([[0], np.cumsum(openers)[:-1]]).astype(np.int64)
    opened = came[picture] + rng.uniform(0, people.within_s, len(picture))
    opened[first[: len(came)]] = came
    stays_s = rng.exponential(people.session_s, len(picture))
    kept = 1.0 if by_picture else part
    # The first click of a session opens it, the others come at any time while it lasts.
    later = rng.poisson(kept * stays_s / people.pause_s)
    session = np.repeat(np.arange(len(picture)), later)
    opens = np.flatnonzero(rng.random(len(picture)) < kept)
    at = np.concatenate([opened[opens], opened[session] + rng.random(len(session)) * stays_s[session]])
    which = np.concatenate([picture[opens], picture[session]])
    order = np.argsort(at, kind="stable")
    at, which = at[order], which[order]
    inside = (at >= 0) & (at < until_s)
    return at[inside], which[inside]


class _Decoder:
    """One decoder: some cores that take what comes first, and the pictures that it keeps."""

    def __init__(self, decoders: Decoders) -> None:
        self._free_at = [0.0] * decoders.cores
        self._keeps = decoders.keeps
        self._kept: OrderedDict[int, None] = OrderedDict()
        self.clicks = self.reads = 0
        self.worked_s = 0.0

    def take(self, at: float, picture: int, decode_s: float, load_s: float) -> float:
        """Work on a click that comes at a moment; return when it is done."""
        works_s = decode_s
        if picture in self._kept:
            self._kept.move_to_end(picture)
        else:
            works_s += load_s
            self.reads += 1
            self._kept[picture] = None
            if len(self._kept) > self._keeps:
                self._kept.popitem(last=False)
        done = max(at, heapq.heappop(self._free_at)) + works_s
        heapq.heappush(self._free_at, done)
        self.clicks += 1
        self.worked_s += works_s
        return done


def simulate_decoders(
    people: People,
    decoders: Decoders,
    clicks_per_s: float,
    *,
    sample: int = 8,
    measured_s: float = 30.0,
    seed: int = 0,
) -> Seen:
    """Simulate a sample of the decoders, from empty ones on, and measure once they are full.

    Args:
        people: how pictures are clicked on.
        decoders: the tier.
        clicks_per_s: those of the whole fleet.
        sample: how many decoders, at most.
        measured_s: how long is measured, in seconds of the model's time.
        seed: of chance.
    """
    rng = np.random.default_rng(seed)
    sample = min(sample, decoders.count)
    warm_s = people.within_s + people.session_s
    times, pictures = clicks_at(
        people,
        clicks_per_s,
        sample / decoders.count,
        by_picture=decoders.affinity,
        until_s=warm_s + measured_s,
        rng=rng,
    )
    tier = [_Decoder(decoders) for _ in range(sample)]
    gateways = [_Gateway(sample) for _ in range(decoders.gateways if decoders.affinity else 0)]
    asked = rng.integers(0, decoders.gateways if decoders.affinity else sample, len(times))
    vary = rng.exponential(1.0, len(times)) if decoders.random_service else np.ones(len(times))
    under_way: list[tuple[float, int, int]] = []
    waits_s, begun = [], False
    for at, picture, via, varied in zip(times.tolist(), pictures.tolist(), asked.tolist(), vary.tolist(), strict=True):
        if at >= warm_s and not begun:
            begun = True
            for one in tier:
                one.clicks, one.reads, one.worked_s = 0, 0, 0.0
        chosen = via
        if gateways:
            while under_way and under_way[0][0] <= at:
                _, gateway, number = heapq.heappop(under_way)
                gateways[gateway].answered(number)
            chosen = gateways[via].choose(at, picture)
        before = tier[chosen].worked_s
        done = tier[chosen].take(at, picture, decoders.decode_s * varied, decoders.load_s * varied)
        if gateways:
            heapq.heappush(under_way, (done, via, chosen))
        if begun:
            waits_s.append(done - at - (tier[chosen].worked_s - before))
    counts = np.array([one.clicks for one in tier])
    return Seen(
        reads_per_click=sum(one.reads for one in tier) / max(1, counts.sum()),
        busy=sum(one.worked_s for one in tier) / (sample * decoders.cores * measured_s),
        waits_s=np.array(waits_s),
        busiest=float(counts.max() / max(1.0, counts.mean())),
    )


class _Gateway:
    """A gateway's own way of placing clicks, in the model's time."""

    def __init__(self, sample: int) -> None:
        self._now = 0.0
        self._placement: Placement[Placeable] = Placement(lambda: self._now)
        self._replicas = [Placeable(f"decoder {number}") for number in range(sample)]
        self._numbers = {replica.name: number for number, replica in enumerate(self._replicas)}
        self._placement.set(self._replicas)

    def choose(self, at: float, picture: int) -> int:
        """Place a click; return on which decoder."""
        self._now = at
        replica = next(self._placement.candidates(f"picture {picture}"))
        self._placement.begin(replica)
        return self._numbers[replica.name]

    def answered(self, number: int) -> None:
        """Note that a decoder has answered a click."""
        self._placement.end(self._replicas[number])


def simulate_encoders(
    people: People, encoders: Encoders, clicks_per_s: float, *, pictures: int = 20_000, seed: int = 0
) -> Floats:
    """Return how long pictures take at one of the encoders, from when they come until they are embedded, in seconds.

    Args:
        people: how pictures are clicked on; each is new once.
        encoders: the tier.
        clicks_per_s: those of the whole fleet.
        pictures: how many are simulated.
        seed: of chance.
    """
    rng = np.random.default_rng(seed)
    rate = clicks_per_s / people.clicks_per_picture / encoders.count
    times = np.cumsum(rng.exponential(1 / rate, pictures)).tolist()
    took_s, free_at, next_one = [], 0.0, 0
    while next_one < pictures:
        begins = max(free_at, times[next_one])
        last = next_one
        while last < pictures and times[last] <= begins and last - next_one < encoders.batch:
            last += 1
        free_at = begins + encoders.first_s + (last - next_one - 1) * encoders.next_s
        took_s += [free_at - came for came in times[next_one:last]]
        next_one = last
    return np.array(took_s)
