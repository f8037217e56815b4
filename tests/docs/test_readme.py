"""README says what is true: its tables are the code's, its snippets run, its links lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.snippets import at
from tests.integration.processes import RANDOM_MODEL, service
from tests.photographs import photograph
from tools import readme_tables

README = readme_tables.README
TEXT = README.read_text()


def test_tables_are_the_codes() -> None:
    """The settings and errors tables are what `make docs` writes."""
    assert readme_tables.render(TEXT) == TEXT, "run 'make docs'"


def test_links_lead_somewhere() -> None:
    """Every relative link names a file or folder of the project, every anchor a heading."""
    headings = {"#" + line.strip("# ").lower().replace(" ", "-") for line in TEXT.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target in headings
        elif not target.startswith("http"):
            assert (README.parent / target).exists(), target


def test_make_targets_exist() -> None:
    """Every `make` command that README names is a target."""
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.fixture(scope="module")
def snippets() -> list[str]:
    """README's Python, in its order."""
    found = re.findall(r"<!-- runs -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) >= 2
    return found


def test_snippets_run_as_printed(tmp_path: Path, snippets: list[str]) -> None:
    """Each Python snippet, pasted into a file beside a photograph, runs against a fresh `samovar serve`."""
    shutil.copy(photograph(), tmp_path / "photo.jpg")
    with service("samovar", tmp_path, RANDOM_MODEL, arguments=("serve",)) as server:
        for snippet in snippets:
            done = subprocess.run(
                [sys.executable, "-c", at(snippet, server.port)],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env={"PYTHONPATH": str(README.parent), "PATH": ""},
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout


SHELL = re.findall(r"```sh\n(curl.*?)```", TEXT, re.DOTALL)


def test_curl_commands_run_as_printed(tmp_path: Path) -> None:
    """Each curl command answers with masks when pasted into a shell."""
    assert len(SHELL) >= 2
    shutil.copy(photograph(), tmp_path / "photo.jpg")
    with service("samovar", tmp_path, RANDOM_MODEL, arguments=("serve",)) as server:
        for command in SHELL:
            done = subprocess.run(
                ["sh", "-c", command.replace("localhost:9001", f"127.0.0.1:{server.port}")],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert '"masks"' in done.stdout, done.stdout + done.stderr
