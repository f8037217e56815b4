"""Everything that can happen to an embedding store, in any order: it forgets at worst, and never mixes up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import start_redis
from tests.faults.conftest import Report
from tests.faults.store_machines import InProcessMachine, RedisMachine

SIZES = [pytest.param((5, 20), id="quick"), pytest.param((60, 40), marks=pytest.mark.faults)]


def _settings(size: tuple[int, int]) -> settings:
    examples, steps = size
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )


@pytest.mark.parametrize("size", SIZES)
def test_an_in_process_store_never_mixes_up(report: Report, size: tuple[int, int]) -> None:
    """Whatever is put, bound, moved, evicted and lost, in whatever order: the right thing is read, or nothing."""
    run_state_machine_as_test(InProcessMachine, settings=_settings(size))
    _row(report, "in the process: put, bind, move, forget, purge, evict, restart", size)


@pytest.mark.parametrize("size", SIZES)
def test_a_redis_store_never_mixes_up(tmp_path: Path, report: Report, size: tuple[int, int]) -> None:
    """The same with a real Redis, which is flushed, poisoned and killed between the steps."""
    RedisMachine.server = start_redis(tmp_path)
    try:
        run_state_machine_as_test(RedisMachine, settings=_settings(size))
    finally:
        RedisMachine.server.stop()
    _row(report, "in Redis: the same, and flush, poison, kill", size)


def _row(report: Report, what: str, size: tuple[int, int]) -> None:
    examples, steps = size
    report.row(
        "store",
        injected=f"state machine {what} ({examples} runs of {steps} steps)",
        counted="runs that read what was not written",
        required="0",
        seen="0",
        held=True,
    )
