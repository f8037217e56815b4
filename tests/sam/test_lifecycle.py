"""Signals, against processes of the test's own: what is running drains, and nothing waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_PROGRAM = """
import asyncio, sys, time
from contextlib import asynccontextmanager
import structlog
from sam.lifecycle import run_until_signalled

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

def say(text):
    print(text, flush=True)

@asynccontextmanager
async def services():
    say("entering")
    await asyncio.sleep({enter_s})
    say("entered")
    try:
        yield
        say("draining")
        await asyncio.sleep({drain_s})
        # A thread that computes, which Python waits for at its end.
        await asyncio.to_thread(time.sleep, {drain_s})
    finally:
        say("left")

run_until_signalled(services)
say("ended")
"""


@contextmanager
def running(*, enter_s: float = 0, drain_s: float = 0) -> Iterator[subprocess.Popen[str]]:
    """Run services that take so long to start and to stop."""
    program = _PROGRAM.format(enter_s=enter_s, drain_s=drain_s)
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(word: str, process: subprocess.Popen[str]) -> None:
    """Read what it says up to a word."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"it ended without saying {word}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains(number: signal.Signals) -> None:
    """SIGINT and SIGTERM alike end it in order, with exit status 0."""
    with running(drain_s=0.01) as process:
        wait_for("entered", process)
        process.send_signal(number)
        said, logged = process.communicate(timeout=20)
    assert said.split() == ["draining", "left", "ended"]
    assert process.returncode == 0
    assert "Traceback" not in logged


def test_a_second_signal_ends_it_at_once() -> None:
    """While it drains, another signal ends the process without waiting for anything."""
    with running(drain_s=60) as process:
        wait_for("entered", process)
        process.send_signal(signal.SIGINT)
        wait_for("draining", process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    assert said == ""


def test_one_signal_that_comes_twice_is_one() -> None:
    """What a process gets from its parent and through its group at the same moment counts once."""
    with running(drain_s=0.3) as process:
        wait_for("entered", process)
        process.send_signal(signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=20)
    assert said.split() == ["draining", "left", "ended"]
    assert process.returncode == 0


def test_a_signal_while_starting() -> None:
    """A signal that comes while services start gives that up, without an error."""
    with running(enter_s=60) as process:
        wait_for("entering", process)
        process.send_signal(signal.SIGTERM)
        said, logged = process.communicate(timeout=20)
    assert said.split() == ["ended"]
    assert process.returncode == 0
    assert "Traceback" not in logged


_ALLOCATOR = """
import ctypes, resource, sys
from sam.lifecycle import give_memory_back
if sys.argv[1] == "give":
    give_memory_back(2**20)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
# From here on glibc would keep blocks up to this size by itself.
libc.free(libc.malloc(8 * 2**20))
# What comes from the system begins with a page.
print(sum(libc.malloc(2 * 2**20) % 4096 == 16 for _ in range(8)))
# What is kept need not be cleared anew, which the system does when a page is first touched.
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    block = libc.malloc(2**19)
    ctypes.memset(block, 1, 2**19)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
@pytest.mark.parametrize(("given", "blocks"), [("give", 8), ("keep", None)])
def test_large_blocks_are_the_systems(given: str, blocks: int | None) -> None:
    """Large blocks come from the system and go back to it, as they would not by themselves; smaller ones are kept."""
    done = subprocess.run([sys.executable, "-c", _ALLOCATOR, given], capture_output=True, text=True, check=True)
    of_the_system, faults = map(int, done.stdout.split())
    assert of_the_system == blocks if blocks is not None else of_the_system < 8
    assert faults < 1000  # of 12,800 pages
