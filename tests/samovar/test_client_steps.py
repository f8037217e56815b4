"""When calls are repeated, on a clock of the test's own."""

from __future__ import annotations

import pytest

from sam.errors import (
    DeadlineExceeded,
    DecoderUnavailable,
    ImageUndecodable,
    InternalError,
    Overloaded,
    StoreUnavailable,
)
from samovar.client.errors import ServerUnreachable
from samovar.client.steps import Deadline, Patience, Steps, Wait


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def outcome(
    failures: list[Exception], *, timeout_s: float = 60, chance: float = 0, attempt_s: float = 0, **patience: float
) -> tuple[object, list[float], int]:
    """Fail as told, then succeed; return the result, the pauses and how many attempts were made."""
    clock, attempts = Clock(), 0
    options = {**patience}
    patient = Patience(timeout_s, clock=clock, chance=lambda: chance, **options)  # type: ignore[arg-type]
    deadline: Deadline = patient.deadline(None)

    def attempt() -> Steps[str]:
        nonlocal attempts
        attempts += 1
        clock.now += attempt_s
        if attempts <= len(failures):
            raise failures[attempts - 1]
        return "done"
        yield

    pauses = []
    steps = patient.retried(attempt, deadline)
    try:
        while True:
            step = next(steps)
            assert isinstance(step, Wait)
            pauses.append(step.seconds)
            clock.now += step.seconds
    except StopIteration as done:
        return done.value, pauses, attempts
    except Exception as error:
        return error, pauses, attempts


def test_success_at_once() -> None:
    """What succeeds is not repeated."""
    assert outcome([]) == ("done", [], 1)


@pytest.mark.parametrize("error", [ImageUndecodable("no"), InternalError("no"), DeadlineExceeded("no")])
def test_what_would_fail_again_is_not_repeated(error: Exception) -> None:
    """A mistake of the caller, a fault of the server and a deadline end the call."""
    assert outcome([error]) == (error, [], 1)


def test_not_before_the_time_that_the_server_names() -> None:
    """A pause is never shorter than the server asks for, and at most a quarter longer."""
    busy = Overloaded("busy", retry_after_s=7)
    assert outcome([busy])[1] == [7]
    assert outcome([busy], chance=1)[1] == [8.75]


def test_pauses_grow_up_to_a_bound() -> None:
    """Without a time from the server each pause is twice the last, up to the longest."""
    lost: list[Exception] = [StoreUnavailable("lost", retry_after_s=0) for _ in range(7)]
    result, pauses, attempts = outcome(lost, longest_pause_s=5)
    assert (result, attempts) == ("done", 8)
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


def test_a_busy_server_is_asked_until_the_deadline() -> None:
    """While the server says to come back, the client does, and at the end raises what the server said last."""
    busy: list[Exception] = [DecoderUnavailable("gone", retry_after_s=10) for _ in range(99)]
    result, pauses, attempts = outcome(busy, timeout_s=35)
    assert isinstance(result, DecoderUnavailable)
    assert (pauses, attempts) == ([10, 10, 10], 4)


def test_an_attempt_that_the_deadline_cuts_short_hides_nothing() -> None:
    """What the attempt before failed with says more than that the last had too little time."""
    result, _, attempts = outcome([StoreUnavailable("lost"), DeadlineExceeded("no")])
    assert isinstance(result, StoreUnavailable)
    assert isinstance(result.__cause__, DeadlineExceeded)
    assert attempts == 2


def test_no_pause_goes_beyond_the_deadline() -> None:
    """A time named by the server that lies behind the deadline is not waited for."""
    result, pauses, _ = outcome([Overloaded("busy", retry_after_s=61)])
    assert isinstance(result, Overloaded)
    assert pauses == []


def test_chance_does_not_push_a_pause_over_the_deadline() -> None:
    """What chance adds to a pause is cut at the deadline."""
    result, pauses, attempts = outcome([Overloaded("busy", retry_after_s=59), Overloaded("busy")], chance=1)
    assert (pauses, attempts) == ([60], 1)
    assert isinstance(result, Overloaded)


def test_a_server_that_does_not_answer_is_tried_a_few_times() -> None:
    """A wrong address is found out in a second or two, not at the deadline."""
    gone: list[Exception] = [ServerUnreachable("nobody") for _ in range(99)]
    result, pauses, attempts = outcome(gone)
    assert isinstance(result, ServerUnreachable)
    assert attempts == 4
    assert sum(pauses) < 2


def test_time_spent_in_attempts_counts() -> None:
    """Attempts that take long leave room for fewer."""
    busy: list[Exception] = [Overloaded("busy", retry_after_s=1) for _ in range(99)]
    result, _, attempts = outcome(busy, timeout_s=10, attempt_s=4)
    assert isinstance(result, Overloaded)
    assert attempts == 2


def test_a_call_may_have_a_better_remedy_than_waiting() -> None:
    """Errors that the caller names are raised at once."""
    patient = Patience()

    def attempt() -> Steps[None]:
        raise StoreUnavailable("lost")
        yield

    with pytest.raises(StoreUnavailable):
        next(patient.retried(attempt, patient.deadline(None), (StoreUnavailable,)))
