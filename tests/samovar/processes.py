"""Runs the command line as a person does: as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SAMOVAR = [sys.executable, "-m", "samovar"]


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without any setting of ours, and with `variables`."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SAMOVAR_")} | variables


def run_samovar(*arguments: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `samovar` to its end."""
    return subprocess.run(
        [*SAMOVAR, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], *, timeout_s: float = 60) -> None:
    """Wait for a condition while a process lives."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"it ended with exit status {process.returncode}"
        assert time.monotonic() < until, f"not within {timeout_s} s"
        time.sleep(0.1)
