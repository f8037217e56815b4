"""Threads that compute side by side, with torch confined to each."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from decoder_service.team import Team, solo_executor


def test_results_come_in_order() -> None:
    """Every item is computed once and its result stands at its place, with helpers and without."""
    for threads in (1, 2, 3):
        team = Team(threads)
        assert team.map(lambda item: item * item, range(7)) == [item * item for item in range(7)]
        team.close()


def test_torch_computes_alone_in_a_solo_thread() -> None:
    """A solo thread has one torch thread, in inference mode in a team, and other threads keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        executor = solo_executor(2, "test")
        assert [executor.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as begun_later:
            assert begun_later.submit(torch.get_num_threads).result() == 2
        executor.shutdown()
    finally:
        torch.set_num_threads(before)
    team = Team(2)
    with torch.inference_mode():
        assert team.map(lambda _: torch.is_inference_mode_enabled(), range(2)) == [True, True]
    team.close()


def test_work_that_no_helper_has_begun_is_taken_over() -> None:
    """A caller whose helper is busy elsewhere does all of its own work."""
    team = Team(2)
    occupied, released = threading.Event(), threading.Event()

    def occupy(item: int) -> None:
        if item:
            occupied.set()
            released.wait(10)

    other = threading.Thread(target=team.map, args=(occupy, range(2)))
    other.start()
    assert occupied.wait(10)
    here = threading.current_thread()
    assert team.map(lambda _: threading.current_thread() is here, range(3)) == [True] * 3
    released.set()
    other.join()
    team.close()


def test_two_callers_do_without_helpers() -> None:
    """While two calls are computed at once, each does all of its own work; alone again, it is helped."""
    team = Team(2)
    here = threading.current_thread()
    with team.joined():
        with team.joined():
            assert team.map(lambda _: threading.current_thread() is here, range(3)) == [True] * 3
        helped = threading.Event()
        # The caller's own item waits for the helper's, so this only ends if there is one.
        assert team.map(lambda item: helped.set() if item else helped.wait(10), range(2)) == [True, None]
    team.close()


def test_nothing_to_do_is_done() -> None:
    """A turn in which no mask is good enough has no items, and no result."""
    team = Team(2)
    assert team.map(str, []) == []
    team.close()


def test_a_failure_is_raised_to_the_caller() -> None:
    """What a helper raises, its caller gets."""
    team = Team(2)

    def fail(item: int) -> None:
        if item:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        team.map(fail, range(2))
    team.close()
