"""Prometheus' own programs, from the system or from where tools/ensure_promtool.sh unpacks them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
_UNPACKED = ROOT / "build" / "prometheus" / "usr" / "bin"


def find(program: str) -> str | None:
    """Return the path of `promtool` or `prometheus`, if it is here."""
    unpacked = _UNPACKED / program
    return shutil.which(program) or (str(unpacked) if unpacked.exists() else None)


needs_promtool = pytest.mark.skipif(
    find("promtool") is None, reason="promtool is not installed; tools/ensure_promtool.sh gets it"
)


def promtool(*arguments: str, text: str | None = None, folder: Path = ROOT) -> str:
    """Run promtool, with `text` as its input; return what it said. It must find nothing wrong."""
    program = find("promtool")
    assert program is not None
    done = subprocess.run(
        [program, *arguments], input=text, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
