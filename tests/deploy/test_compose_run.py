"""What `make compose-test` stands on: it fails where containers cannot run, and reads its figures rightly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compose.engine import CannotRun, Engine
from tests.compose.images import local_paths, pip_configuration
from tests.compose.shares import balanced_after, shares, told
from tests.compose.table import Row, as_markdown, write_into
from tests.deploy.compose import ROOT
from tests.deploy.test_tools import SHELL, TOOLS, tools_only

_REFUSES = "echo 'cannot clone: Operation not permitted' >&2; exit 125"
_PRETENDS = "exit 0"


def stand_in(folder: Path, name: str, lines: str) -> None:
    """Write a program that stands in for another."""
    (folder / name).write_text(f"#!{SHELL}\n{lines}\n")
    (folder / name).chmod(0o755)


def run_compose_test(folder: Path, programs: Path) -> subprocess.CompletedProcess[str]:
    """Run what `make compose-test` runs, with only some programs."""
    return subprocess.run(
        [sys.executable, "-m", "tests.compose", "--folder", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("podman", "said"),
    [(_REFUSES, "Operation not permitted"), (_PRETENDS, "should print 42"), (None, "podman is not installed")],
)
def test_it_fails_where_containers_do_not_run(tmp_path: Path, podman: str | None, said: str) -> None:
    """Where podman cannot run, only pretends to, or is missing, nothing passes, and one line says so."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if podman is not None:
        stand_in(programs, "podman", podman)
        # Enough for it to come as far as podman itself.
        stand_in(programs, "debootstrap", "exit 0")
        stand_in(programs, "tar", "exit 0")
    done = run_compose_test(tmp_path / "folder", programs)
    assert done.returncode == 2, done.stderr
    assert "nothing was tested" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_do_not_meet(tmp_path: Path) -> None:
    """A second run in the same folder is refused while the first one goes on."""
    stand_in(tmp_path, "podman", "exit 0")
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PATH", str(tmp_path))
        first = Engine(tmp_path / "folder")
        with pytest.raises(CannotRun, match="another run"):
            Engine(tmp_path / "folder")
        first.close()
        Engine(tmp_path / "folder").close()


@pytest.mark.parametrize(
    ("user", "programs", "said"),
    [("1000", (), "as root"), ("0", (), "needs podman"), ("0", ("apt-get",), "apt-get did not install")],
)
def test_what_cannot_be_installed(tmp_path: Path, user: str, programs: tuple[str, ...], said: str) -> None:
    """Without root, without apt-get, or where that fails, one line says what is needed."""
    environment = tools_only(tmp_path, "mktemp", "tail", "rm")
    stand_in(tmp_path, "id", f"echo {user}")
    stand_in(tmp_path, "uname", "echo Linux")
    for name in programs:
        stand_in(tmp_path, name, "exit 100")
    command = [SHELL, str(TOOLS / "ensure_containers.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_where_pip_looks_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's files and variables are read, the variables count for more, and folders of this machine are found."""
    wheels, index = tmp_path / "wheels", tmp_path / "index" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    (tmp_path / "pip.conf").write_text(
        f"[global]\nfind-links = /elsewhere\nextra-index-url = https://packages.example/simple\n  file://{index}\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    found = pip_configuration()
    assert found["find-links"] == str(wheels)
    assert found["extra-index-url"] == f"https://packages.example/simple file://{index}"
    assert local_paths([found["find-links"], found["extra-index-url"]]) == sorted([str(wheels), str(index.parent)])


def test_shares_are_counted_from_what_replicas_logged() -> None:
    """A replica's part is what it did of all that was done in that time."""
    moments = {"a": [1.0, 2.0, 3.0], "b": [2.5], "c": []}
    assert shares(moments, 0, 4) == {"a": 0.75, "b": 0.25, "c": 0.0}
    assert shares(moments, 2, 3) == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert shares(moments, 10, 20) == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert told({"b": 0.25, "a": 0.75}) == "75/25 %"


def test_balance_is_found_when_it_is_there() -> None:
    """The moment is found at which every replica has had its part for a while; without one, none is."""
    old = [number / 10 for number in range(400)]
    joined = {"old": old, "new": [moment for moment in old if moment >= 20]}
    after = balanced_after(joined, 10, low=0.4, high=0.6, window_s=5, until=40)
    # From 20 s on both do the same; within the window that is so once two thirds of it are later than that.
    assert after is not None
    assert 13 <= after <= 15
    assert balanced_after({"old": old, "new": []}, 10, low=0.4, high=0.6, window_s=5, until=40) is None


def test_the_table_goes_into_the_document(tmp_path: Path) -> None:
    """A run's table replaces the last one and leaves the rest; a document without a place for it is refused."""
    rows = [Row("decoders 1→4", "0 failed", "0 of 9", held=True), Row("Redis killed", "within 5 s", "7 s", held=False)]
    document = tmp_path / "page.md"
    document.write_text("Before.\n<!-- run -->\nold\n<!-- /run -->\nAfter.\n")
    write_into(document, rows, "Today.")
    text = document.read_text()
    assert text == f"Before.\n<!-- run -->\nToday.\n\n{as_markdown(rows)}\n<!-- /run -->\nAfter.\n"
    assert "| Redis killed | within 5 s | 7 s | no |" in text
    document.write_text("No place.")
    with pytest.raises(ValueError, match="run"):
        write_into(document, rows, "Today.")
