"""The services that hostile input is sent to, and the table of what came of it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.faults.deployment import Deployment, deployment
from tests.faults.table import write_section
from tests.hostile.tally import COLUMNS, Tally, as_markdown, rows_of

_TALLIES = pytest.StashKey[list[Tally]]()

Begin = Callable[[str], Tally]


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty table."""
    config.stash[_TALLIES] = []


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Begin]:
    """Begins a row of the table; a test that has begun one must not bring about a fault of ours."""
    begun: list[Tally] = []

    def begin(what: str) -> Tally:
        begun.append(Tally(what))
        request.config.stash[_TALLIES].append(begun[-1])
        return begun[-1]

    yield begin
    for one in begun:
        assert not one.faults, f"{one.what}: {dict(one.outcomes)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it where --table says."""
    tallies = [tally for tally in config.stash.get(_TALLIES, []) if tally.tried]
    if not tallies:
        return
    table = Table(*COLUMNS, title="Hostile input", show_lines=True)
    for row in rows_of(tallies):
        table.add_row(*row)
    Console(width=max(120, Console().width), file=terminalreporter._tw._file).print(table)
    document = config.getoption("table", None)
    if document:
        note = (
            f"Run of {datetime.date.today():%d %B %Y}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"by `make hostile`."
        )
        write_section(Path(document), "hostile", f"{note}\n\n{as_markdown(tallies)}\n")


@pytest.fixture(scope="session")
def http_counts(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The row of the requests that are made from the OpenAPI document."""
    counts = Tally("requests made from /openapi.json, of all routes")
    request.config.stash[_TALLIES].append(counts)
    yield counts
    assert not counts.faults, dict(counts.outcomes)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A gateway, an encoder and a decoder over a Redis, as real processes with the stub model and default settings."""
    settings = {"SAMOVAR_CHECKPOINT": "stub:1", "SAMOVAR_LOG_FORMAT": "json", "SAMOVAR_REDIS_TIMEOUT_S": "5"}
    with deployment(
        tmp_path_factory.mktemp("hostile"), encoders=1, decoders=1, gateways=1, environment=settings
    ) as running:
        yield running
