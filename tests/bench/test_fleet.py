"""The model of a fleet, held to what queueing theory knows."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bench import fleet
from bench.fleet_model import Decoders, Encoders, People, clicks_at, simulate_decoders, simulate_encoders

SERVICE_S = 0.02
MANY = 10**9


def plain(count: int, cores: int, *, random_service: bool) -> Decoders:
    """Return decoders whose clicks all take the same, or exponentially varying times, and go anywhere."""
    return Decoders(count, cores, SERVICE_S, 0.0, MANY, affinity=False, random_service=random_service)


@pytest.mark.parametrize("busy", [0.5, 0.8])
def test_one_core_waits_as_m_d_1(busy: float) -> None:
    """With one core and constant times the mean wait is that of Pollaczek and Khinchine, and the core is as busy."""
    rate = 200 * busy / SERVICE_S
    seen = simulate_decoders(People(), plain(200, 1, random_service=False), rate, sample=8, measured_s=200)
    expected = busy * SERVICE_S / (2 * (1 - busy))
    assert seen.waits_s.mean() == pytest.approx(expected, rel=0.1)
    assert seen.busy == pytest.approx(busy, rel=0.03)


def test_two_cores_wait_as_m_m_2() -> None:
    """With two cores and exponential times the mean wait is that of Erlang's C formula."""
    busy = 0.7
    rate = 200 * 2 * busy / SERVICE_S
    seen = simulate_decoders(People(), plain(200, 2, random_service=True), rate, sample=6, measured_s=150)
    load = 2 * busy
    waiting = load**2 / 2 / (1 - busy)
    erlang_c = waiting / (1 + load + waiting)
    assert seen.waits_s.mean() == pytest.approx(erlang_c * SERVICE_S / (2 * (1 - busy)), rel=0.1)


def test_an_encoder_without_batches_is_an_m_d_1_too() -> None:
    """Pictures that are embedded one by one take the wait of M/D/1 and their own time."""
    busy, each_s = 0.6, 3.0
    people = People()
    rate = busy / each_s * people.clicks_per_picture
    took_s = simulate_encoders(people, Encoders(1, each_s, each_s, batch=1), rate, pictures=60_000)
    assert took_s.mean() == pytest.approx(each_s + busy * each_s / (2 * (1 - busy)), rel=0.1)


def test_batches_carry_more_than_one_by_one() -> None:
    """At a rate that one by one could never keep up with, batches of eight do."""
    people = People()
    encoder = Encoders(1, 0.014, 0.0107)
    rate = 0.9 * encoder.pictures_per_s * people.clicks_per_picture
    assert rate / people.clicks_per_picture > 1 / encoder.first_s
    assert np.percentile(simulate_encoders(people, encoder, rate), 99) < 1.0


@pytest.mark.parametrize("by_picture", [True, False])
def test_a_part_of_the_fleet_gets_its_part_of_the_clicks(by_picture: bool) -> None:
    """However the part is taken, it has its share, in order; by picture all clicks on one are in it, else few are."""
    people = People()
    times, pictures = clicks_at(people, 2_000, 0.05, by_picture=by_picture, until_s=300, rng=np.random.default_rng(0))
    assert (np.diff(times) >= 0).all()
    assert len(times) == pytest.approx(2_000 * 0.05 * 300, rel=0.1)
    amid = pictures[(times > 100) & (times < 150)]
    whole = len(times) / len(np.unique(pictures))
    assert whole > 0.7 * people.clicks_per_picture if by_picture else whole < 6
    assert len(amid)


@pytest.mark.parametrize(("affinity", "at_least"), [(False, 0.95), (True, 0.6)])
def test_a_sample_stands_for_all_of_them(affinity: bool, at_least: float) -> None:
    """Eight of sixteen decoders see what all do; with affinity fewer reads, for overflow has fewer places to go."""
    decoders = Decoders(16, affinity=affinity, keeps=64, gateways=8)
    part, whole = (simulate_decoders(People(), decoders, 300, sample=sample) for sample in (8, 16))
    assert at_least < part.reads_per_click / whole.reads_per_click < 1.05
    assert part.busy == pytest.approx(whole.busy, rel=0.1)


def test_affinity_reads_a_picture_little_more_than_once() -> None:
    """With affinity a picture is read about once in all its clicks; without, at nearly every decoder."""
    people = People()
    on, off = (
        simulate_decoders(people, Decoders(256, affinity=affinity, gateways=8), 5_000, sample=4)
        for affinity in (True, False)
    )
    assert 1 <= on.reads_per_click * people.clicks_per_picture < 3
    assert off.reads_per_click > 0.8
    assert on.busiest < 1.25


def test_the_arithmetic_of_sizes() -> None:
    """Twice the clicks need twice of everything, and a core at 60 % has the work that it was given."""
    figures = fleet.Figures()
    small, large = fleet.size(figures, 50_000), fleet.size(figures, 100_000)
    for name in ("decoders", "gateways", "encoders", "redis_tib", "new_per_s"):
        assert getattr(large, name) == pytest.approx(2 * getattr(small, name), rel=0.02)
    assert large.decoders == math.ceil(100_000 * 0.0224 / 2 / 0.6)
    assert large.redis_tib == pytest.approx(100_000 / 63 * 3600 * 2_976_039 / 2**40)


def test_json_has_the_figures_and_all_that_came_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    """One object: what went in, and for each fleet its sizes and both outcomes."""
    fleet.main(["--json", "--clicks", "50", "--decode-s", "0.02"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["figures"]["decode_s"] == 0.02
    (one,) = printed["fleets"]
    assert [outcome["affinity"] for outcome in one["outcomes"]] == [False, True]
    assert one["decoders"] >= 1
