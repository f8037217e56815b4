"""The fenced blocks of a page, and what runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"(?:<!-- (?P<marker>[^>\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)

TIMEOUT_S = 120


class Snippet(NamedTuple):
    """One block, and the comment above it."""

    page: str
    line: int
    marker: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: str) -> list[Snippet]:
    """Return the blocks of a page of docs/, in their order."""
    text = (DOCS / page).read_text()
    return [
        Snippet(page, text[: found.start()].count("\n") + 1, found["marker"] or "", found["language"], found["text"])
        for found in _BLOCK.finditer(text)
    ]


def at(text: str, port: int) -> str:
    """Return a text with the addresses of a server that listens on `port` and the two after it."""
    for offset in range(3):
        text = text.replace(f"localhost:{9001 + offset}", f"127.0.0.1:{port + offset}")
    return text


def run(
    text: str, language: str, folder: Path, variables: Mapping[str, str] | None = None, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run a block in a folder, as pasted into a shell or a file there; it must succeed."""
    command: Sequence[str]
    command = [python, "-W", "ignore", "-c", text] if language == "python" else ["sh", "-eu", "-c", text]
    # What the environment's `activate` does: its programs come first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SAMOVAR_")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "PATH": path, "NO_PROXY": "127.0.0.1", **(variables or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)[:2000]}\n{done.stdout}\n{done.stderr}"
    return done
