"""Which replica a picture's calls are placed on: rendezvous hashing with bounded loads, and no network."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from gateway.affinity.pictures import picture_of
from gateway.affinity.placement import MOST_HOMES, RECENT_BOUND, Placeable, Placement
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, image_pb2

PICTURES = [f"anonymous/picture {number}" for number in range(2000)]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def replicas(count: int) -> list[Placeable]:
    """Return replicas with addresses of their own."""
    return [Placeable(f"10.0.0.{number}:50052") for number in range(count)]


def placement(count: int, clock: Clock | None = None) -> Placement[Placeable]:
    """Return a placement on so many replicas."""
    placed: Placement[Placeable] = Placement(clock or Clock())
    placed.set(replicas(count))
    return placed


def first(placed: Placement[Placeable], picture: str) -> Placeable:
    """Return the replica that is asked first."""
    return next(placed.candidates(picture))


def click(placed: Placement[Placeable], picture: str) -> str:
    """Make a call that is answered at once; return where it went."""
    replica = first(placed, picture)
    placed.begin(replica)
    placed.end(replica)
    return replica.name


def test_a_picture_goes_to_the_same_replica_at_every_gateway() -> None:
    """Two placements, one of another process and its replicas in another order, agree on every picture."""
    program = (
        "from tests.gateway.test_placement import *\n"
        "placed = Placement(Clock()); placed.set(replicas(8)[::-1])\n"
        "print([first(placed, picture).name for picture in PICTURES[:50]])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = placement(8)
    assert done.stdout.strip() == str([first(here, picture).name for picture in PICTURES[:50]])


@pytest.mark.parametrize("count", [2, 8, 100])
def test_pictures_are_spread_evenly(count: int) -> None:
    """Each replica has its share of many pictures, as chance would have it, and no more."""
    placed = placement(count)
    shares = Counter(first(placed, picture).name for picture in PICTURES)
    mean = len(PICTURES) / count
    assert len(shares) == count
    assert all(abs(share - mean) < 5 * mean**0.5 for share in shares.values())


def test_a_replica_that_leaves_moves_its_pictures_and_no_others() -> None:
    """Pictures of the others stay; those of the lost one are spread over all that are left, and come back with it."""
    placed = placement(8)
    before = {picture: first(placed, picture) for picture in PICTURES}
    lost = before[PICTURES[0]]
    rest = [replica for replica in placed.replicas if replica is not lost]
    placed.set(rest)
    after = {picture: first(placed, picture) for picture in PICTURES}
    moved = [picture for picture in PICTURES if before[picture] is not after[picture]]
    assert all(before[picture] is lost for picture in moved)
    assert len(moved) == sum(replica is lost for replica in before.values())
    assert abs(len(moved) / len(PICTURES) - 1 / 8) < 0.04
    assert {after[picture].name for picture in moved} == {replica.name for replica in rest}
    placed.set([*rest, lost])
    assert {picture: first(placed, picture) for picture in PICTURES} == before


def test_a_replica_that_joins_takes_its_share_and_the_others_keep_the_rest() -> None:
    """With a ninth replica about a ninth of the pictures move, all of them to it."""
    placed = placement(8)
    before = {picture: first(placed, picture) for picture in PICTURES}
    new = Placeable("10.0.0.99:50052")
    placed.set([*placed.replicas, new])
    moved = [picture for picture in PICTURES if first(placed, picture) is not before[picture]]
    assert all(first(placed, picture) is new for picture in moved)
    assert abs(len(moved) / len(PICTURES) - 1 / 9) < 0.04


def test_a_picture_that_everybody_clicks_on_is_shared() -> None:
    """One picture that has every click is spread: no replica has more than its bound allows."""
    clock, counts = Clock(), Counter[str]()
    placed = placement(8, clock)
    for number in range(4000):
        clock.now = number / 100
        counts[click(placed, PICTURES[0])] += 1
    assert max(counts.values()) < (RECENT_BOUND + 0.05) * 4000 / 8


def test_a_picture_clicked_on_now_and_then_is_read_once() -> None:
    """Somebody who clicks alone, once in ten seconds, is always sent to the same replica."""
    clock, counts = Clock(), Counter[str]()
    placed = placement(8, clock)
    for number in range(100):
        clock.now = number * 10
        counts[click(placed, PICTURES[0])] += 1
    assert len(counts) == 1


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_pictures_are_read_little_more_than_once(seed: int) -> None:
    """Eight replicas with 200 pictures have equal work, and seven pictures in ten are at one replica alone."""
    rng, clock, counts = random.Random(seed), Clock(), Counter[str]()
    placed, read = placement(8, clock), set()
    for number in range(4000):
        clock.now = number / 100
        picture = PICTURES[seed * 200 + rng.randrange(200)]
        name = click(placed, picture)
        read.add((picture, name))
        counts[name] += 1
    assert max(counts.values()) < 1.1 * 4000 / 8
    assert len(read) < 1.6 * 200


@pytest.mark.parametrize("seed", range(5))
def test_a_handful_of_pictures_is_shared_too(seed: int) -> None:
    """Four replicas with eight pictures, one after another, have between 15 and 35 % of the clicks of 15 s each."""
    clock, counts = Clock(), Counter[str]()
    placed: Placement[Placeable] = Placement(clock)
    placed.set([Placeable(f"10.{seed}.0.{number}:50052") for number in range(4)])
    for number in range(550):
        clock.now = number / 10
        picture = f"new {number}" if number % 10 < 2 else f"known {number // 10 % 8}"
        for _ in range(2 if number % 10 < 2 else 1):
            name = click(placed, picture)
            counts[name] += number >= 400
    assert len(counts) == 4
    assert all(0.15 <= count / counts.total() <= 0.35 for count in counts.values())


def test_a_replica_that_does_not_answer_gets_no_more() -> None:
    """Calls that stay under way at one replica are few, however many of its pictures are asked for."""
    placed = placement(4)
    stuck = first(placed, PICTURES[0])
    for picture in PICTURES:
        replica = first(placed, picture)
        placed.begin(replica)
        if replica is not stuck:
            placed.end(replica)
    assert stuck.under_way <= 4
    placed.end(stuck)
    assert stuck.under_way <= 3


def test_a_new_replica_is_not_flooded() -> None:
    """In the seconds after one has joined it has its own pictures' clicks, and not all the others' too."""
    rng, clock = random.Random(0), Clock()
    placed = placement(7, clock)
    for number in range(3000):
        clock.now = number / 100
        click(placed, PICTURES[rng.randrange(200)])
    new = Placeable("10.0.0.99:50052")
    placed.set([*placed.replicas, new])
    counts = Counter[str]()
    for number in range(3000, 3500):
        clock.now = number / 100
        counts[click(placed, PICTURES[rng.randrange(200)])] += 1
    assert 0.5 / 8 < counts[new.name] / 500 < 1.5 / 8


def test_after_a_refusal_another_is_asked_and_the_picture_stays_where_it_was() -> None:
    """The next candidate is another replica; the next click goes to the first again."""
    placed = placement(4)
    candidates = placed.candidates(PICTURES[0])
    one, other = next(candidates), next(candidates)
    assert one is not other
    assert first(placed, PICTURES[0]) is one
    assert {replica.name for replica in placed.candidates(PICTURES[0])} == {one.name for one in placed.replicas}


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_while_one_is_asked_all_may_go(asked: int) -> None:
    """When the last replica leaves amid a call that others have refused, no candidate is left, and nothing raises."""
    placed = placement(4)
    candidates = placed.candidates(PICTURES[0])
    for _ in range(asked):
        next(candidates)
    placed.set([])
    assert list(candidates) == []


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_while_one_is_asked_others_may_come_and_go(asked: int) -> None:
    """Those that are there now are asked next, in their order, and none twice."""
    placed = placement(4)
    for picture in PICTURES[:50]:
        before = placed.replicas
        candidates = placed.candidates(picture)
        seen = [next(candidates) for _ in range(asked)]
        new = Placeable(f"10.0.1.{len(picture)}:{picture[-1]}")
        placed.set([*before[2:], new])
        expected = [replica for replica in placed.candidates(picture) if replica not in seen]
        assert list(candidates) == expected
        assert len(expected) == len([replica for replica in placed.replicas if replica not in seen])
        placed.set(before)


def test_without_replicas_there_is_no_candidate() -> None:
    """Nothing is placed on nobody, even if somebody was there a moment ago."""
    placed = placement(2)
    first(placed, PICTURES[0])
    placed.set([])
    assert list(placed.candidates(PICTURES[0])) == []


def test_it_runs_for_months_in_bounded_memory() -> None:
    """Weights stay finite, calls that end after their replica has left count for nobody, pictures are forgotten."""
    clock = Clock()
    placed = placement(4, clock)
    held = first(placed, PICTURES[0])
    placed.begin(held)
    for number in range(2000):
        clock.now = number * 5_000
        click(placed, PICTURES[number])
    placed.set([replica for replica in placed.replicas if replica is not held])
    placed.end(held)
    assert all(0 <= replica.recent < 10 for replica in placed.replicas)
    assert all(replica.under_way == 0 for replica in placed.replicas)
    for number in range(MOST_HOMES + 10):
        first(placed, f"anonymous/{number}")
    assert len(placed._homes) == MOST_HOMES


def test_a_choice_costs_microseconds() -> None:
    """A click on a picture that is known takes less than 100 us with a thousand replicas, on a busy machine too."""
    placed = placement(1000)
    click(placed, PICTURES[0])
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        click(placed, PICTURES[0])
        best = min(best, time.perf_counter() - started)
    assert best < 100e-6


def _stored(**reference: str) -> pb.SegmentImageRequest:
    return pb.SegmentImageRequest(image=image_pb2.ImageReference(**reference))


def test_what_identifies_a_picture() -> None:
    """Clicks by name, with the picture, and after an embed agree; other tenants' names are other pictures'."""
    digest = "a" * 64
    named = picture_of(_stored(image_id="photo"), "")
    assert named == picture_of(_stored(image_id="photo", image_digest=digest), "")
    assert named == picture_of(_stored(image_id="photo", url="https://pictures.example/a.png"), "")
    inline = embedding_pb2.ImageEmbedding(image_id="photo", image_digest=digest)
    assert named == picture_of(pb.SegmentImageRequest(embedding=inline), "")
    assert named != picture_of(_stored(image_id="photo"), "key")
    # Without an image_id the digest is returned as one, and later clicks bring that alone.
    assert picture_of(_stored(image_digest=digest), "") == picture_of(_stored(image_id=digest), "")
    assert picture_of(pb.SegmentImageRequest(embedding=embedding_pb2.ImageEmbedding()), "") == ""
