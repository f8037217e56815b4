"""How much one key may ask."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam.auth import KeyRing
from sam.errors import Overloaded
from sam.key_limits import CALLS_PER_REQUEST, KeyLimits, KeyMeter
from sam.keys_file import KnownKey, digest_of


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now


def granted(meter: KeyMeter, asked: int) -> int:
    """Ask so many times, one after another; return how often it was granted."""
    count = 0
    for _ in range(asked):
        try:
            with meter.hold():
                count += 1
        except Overloaded:
            pass
    return count


def test_a_rate_is_kept() -> None:
    """A second's worth may come at once, then as many as the time brings; unused time is not saved up."""
    clock = Clock()
    meter = KeyMeter(KeyLimits(rate_per_s=5), clock=clock)
    assert granted(meter, 20) == 5
    clock.now += 1
    assert granted(meter, 20) == 5
    clock.now += 0.4
    assert granted(meter, 20) == 2
    clock.now += 3600
    assert granted(meter, 20) == 5


def test_who_is_refused_is_told_when_to_come_back() -> None:
    """The time that is named is the time after which one more is granted, and not less."""
    clock = Clock()
    meter = KeyMeter(KeyLimits(rate_per_s=0.5), clock=clock)
    assert granted(meter, 1) == 1
    with pytest.raises(Overloaded) as caught, meter.hold():
        pass
    assert caught.value.retry_after_s == pytest.approx(2)
    assert caught.value.metadata == {"limit": "key_rate"}
    clock.now += 1.9
    assert granted(meter, 1) == 0
    clock.now += 0.11
    assert granted(meter, 3) == 1


def test_requests_at_the_same_time_are_counted() -> None:
    """No more than the limit are under way at once; one that ends, well or badly, makes room."""
    meter = KeyMeter(KeyLimits(concurrency=2))
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(meter.hold())
        with pytest.raises(Overloaded) as caught, meter.hold():
            pass
        assert caught.value.metadata == {"limit": "key_concurrency"}
    with pytest.raises(ValueError, match="broken"), meter.hold():
        raise ValueError("broken")
    with meter.hold(), meter.hold():
        pass


def test_what_is_refused_for_one_limit_does_not_use_up_the_other() -> None:
    """Requests that are too many at once do not count against the rate."""
    clock = Clock()
    meter = KeyMeter(KeyLimits(rate_per_s=3, concurrency=1), clock=clock)
    with meter.hold():
        assert granted(meter, 10) == 0
    assert granted(meter, 10) == 2


@given(
    rate=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=200),
)
def test_whatever_a_gateway_grants_a_service_does_not_refuse(rate: int, pauses: list[float]) -> None:
    """Three calls to one service for every request that the gateway granted never meet the service's limit."""
    clock = Clock()
    gateway = KeyMeter(KeyLimits(rate_per_s=rate), clock=clock)
    service = KeyMeter(KeyLimits(rate_per_s=rate), calls_per_request=CALLS_PER_REQUEST, clock=clock)
    for pause in pauses:
        clock.now += pause
        if granted(gateway, 1):
            assert granted(service, 3) == 3


def test_keys_are_counted_apart() -> None:
    """One key's requests are not held against another, nor against one without limits."""
    limits = KeyLimits(rate_per_s=1)
    keys = [KnownKey(digest_of(name), limits=limits) for name in ("a", "b")]
    ring = KeyRing([*keys, "free"])
    for key in ("a", "b"):
        with ring.holding(key):
            pass
        with pytest.raises(Overloaded), ring.holding(key):
            pass
    for _ in range(100):
        with ring.holding("free"):
            pass
