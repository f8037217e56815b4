"""The deployment that the catalogue's faults are injected into, and the table of what came of it."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tests.faults.deployment import Deployment, deployment
from tests.faults.table import Row, in_order, write_into

_ROWS = pytest.StashKey[list[Row]]()


class FigureMissed(AssertionError):
    """A figure was not reached; a wrong answer is another error, which no expected failure covers."""


class Report:
    """Collects the rows of one test."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def row(self, fault: str, *, injected: str, counted: str, required: str, seen: str, held: bool) -> None:
        """Write a row; see `Row`."""
        self.rows.append(Row(fault, injected, counted, required, seen, held))

    def assert_held(self) -> None:
        """Fail if a row says that a promise was not kept."""
        broken = [f"{row.fault}: required {row.required}; seen {row.seen}" for row in self.rows if not row.held]
        if broken:
            raise FigureMissed("\n".join(broken))


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty table."""
    config.stash[_ROWS] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """The test's part of the table."""
    report = Report()
    request.node.stash[_REPORT] = report
    return report


_REPORT = pytest.StashKey[Report]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Take a finished test's rows, and write one for a test that failed before it had any that says so."""
    outcome = yield
    rows = item.stash[_REPORT].rows if _REPORT in item.stash else []
    if call.when == "call" and _REPORT in item.stash:
        if call.excinfo is not None and all(row.held for row in rows):
            named = re.match(r"test_(f\d+)", item.name)
            what = str(call.excinfo.value).splitlines() or [call.excinfo.typename]
            rows.append(Row(named[1].upper() if named else item.name, "", item.name, "", what[0][:160], False))
        if item.get_closest_marker("faults") or item.get_closest_marker("soak"):
            # The quick part of `make test` asserts the same, and needs no table.
            item.config.stash[_ROWS].extend(rows)
    return outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it where --table says."""
    rows = config.stash[_ROWS]
    if not rows:
        return
    table = Table(*("fault", "injected", "counted", "required", "seen", "held"), title="Faults", show_lines=True)
    for row in in_order(rows):
        table.add_row(*(cell.replace("**", "") for cell in row.cells()))
    Console(width=max(120, Console().width), file=terminalreporter._tw._file).print(table)
    document = config.getoption("table", None)
    if document:
        load = os.getloadavg()[2]
        note = (
            f"Run of {datetime.date.today():%d %B %Y}, {os.cpu_count()} cores, Python {platform.python_version()}; "
            f"load average over its last quarter of an hour {load:.1f}."
        )
        # The soak is a run of its own.
        section = "soak" if {row.fault for row in rows} == {"F25"} else "faults"
        write_into(Path(document), section, rows, note)


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("whole"), gateways=3) as running:
        yield running


@pytest.fixture(scope="session")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    # Patient with Redis: `make test` also has to pass where other work has taken the processor for half a second.
    with deployment(
        tmp_path_factory.mktemp("small"), gateways=2, environment={"SAMOVAR_REDIS_TIMEOUT_S": "3"}
    ) as running:
        yield running


@pytest.fixture
def standing(request: pytest.FixtureRequest) -> Deployment:
    """Gateways, two encoders, two decoders and a Redis, whole and with nothing stored; all settings are the defaults.

    The quick part has a smaller one of its own.
    """
    name = "_whole" if request.node.get_closest_marker("faults") else "_small"
    running: Deployment = request.getfixturevalue(name)
    running.repair()
    with running.redis.client() as client:
        client.flushall()
    return running
