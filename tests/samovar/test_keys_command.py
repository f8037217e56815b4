"""`samovar keys`: keys made, and files of them looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam.auth import KeyRing
from tests.samovar.processes import run_samovar


def test_a_new_key_is_printed_with_its_line(tmp_path: Path) -> None:
    """The first line is the key, the second what a file of keys takes; two are never the same."""
    first, second = (run_samovar("keys", "new", "--name", "alice", "--rate", "10/s") for _ in range(2))
    assert first.returncode == 0, first.stderr
    key, line = first.stdout.splitlines()
    assert key not in line
    assert line.endswith(" name=alice rate=10/s")
    assert second.stdout.splitlines()[0] != key
    file = tmp_path / "keys"
    file.write_text(line)
    assert KeyRing.from_file(file).name_of(key) == "alice"


def test_keys_are_added_to_a_file(tmp_path: Path) -> None:
    """With --file the line is added to what is there, the key alone is printed, and the file is its owner's."""
    made = []
    for arguments in ((), ("--name", "bob", "--concurrency", "2")):
        done = run_samovar("keys", "new", "--file", "keys", *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        made.append(done.stdout.strip())
    file = tmp_path / "keys"
    assert file.stat().st_mode & 0o777 == 0o600
    for key in made:
        KeyRing.from_file(file).admit(key)
        assert key not in file.read_text()
    checked = run_samovar("keys", "check", "keys", folder=tmp_path)
    assert checked.stdout.splitlines() == ["(no name): no limits of its own", "bob: 2 at once"]


@pytest.mark.parametrize("arguments", [("--rate", "10"), ("--name", "a b"), ("--concurrency", "0")])
def test_what_no_line_could_say_is_refused(tmp_path: Path, arguments: tuple[str, str]) -> None:
    """A name or a limit that the services would not read is refused, and nothing is written."""
    done = run_samovar("keys", "new", "--file", "keys", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "keys").exists()


def test_a_file_that_is_wrong_is_named_by_its_line(tmp_path: Path) -> None:
    """`keys check` says what the services would say."""
    (tmp_path / "keys").write_text("fine\nsha256:wrong\n")
    done = run_samovar("keys", "check", "keys", folder=tmp_path)
    assert done.returncode == 1
    assert "line 2" in done.stderr
    assert "wrong" not in done.stderr.replace("keys file", "")
