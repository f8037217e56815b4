"""What tests of several rooms need: a real Redis, and ports."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import structlog
from hypothesis import settings

# Threads of torch that wait by spinning take the cores from the processes that a test waits for. Read when torch is
# loaded, hence here, and inherited by those processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# How long one example takes says more about what else the machine does than about us.
settings.register_profile("samovar", deadline=None)
# `make hostile` names this one.
settings.register_profile("hostile", deadline=None, max_examples=1000)
settings.load_profile("samovar")

# A server may log after its client has its answer, when pytest captures no longer. Tests of logs set up their own.
structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


def pytest_configure(config: pytest.Config) -> None:
    """Let workers that share the machine compute with one thread each: with two they wait for one another."""
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --table, for the runs that print one."""
    parser.addoption("--table", metavar="FILE", help="a Markdown file to write the run's table into")


@pytest.fixture
def logs_on_stderr() -> Iterator[None]:
    """Logs of this process go to standard error."""
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    yield
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


@dataclass
class RedisServer:
    """A redis-server of the test's own, on loopback."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """The URL for the services."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Return a blocking client for looking at what the services did."""
        return redis.Redis(port=self.port)

    def stop(self) -> None:
        """Kill it as a crash would."""
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """Return a port that nothing listens on, nor on the two after it, where `samovar serve` puts its services.

    It is below those that the system gives to outgoing connections, one of which could take it before it is used.
    """
    for _ in range(1000):
        port = _PORTS.randrange(10_000, 32_000)
        with ExitStack() as probes:
            try:
                for offset in range(3):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
    raise AssertionError("no three free ports in a row")


_PORTS = random.SystemRandom()
"""Not seeded: workers of one run must not try the same ports."""


def start_redis(folder: Path, *options: str, port: int | None = None) -> RedisServer:
    """Start a redis-server that persists nothing, and wait until it answers."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed; 'make test' installs it or says how")
    port = port or free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([*command, "--dir", str(folder), *options], stdout=subprocess.DEVNULL)
    server = RedisServer(port, folder, process)
    until = time.monotonic() + 10
    while True:
        try:
            with server.client() as client:
                client.ping()
            return server
        except redis.AuthenticationError:
            return server
        except redis.RedisError:
            if time.monotonic() > until or process.poll() is not None:
                server.stop()
                raise
            time.sleep(0.02)


@pytest.fixture(scope="session")
def _session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> RedisServer:
    """A real, empty Redis, shared by the session's tests one after another."""
    with _session_redis.client() as client:
        client.flushall()
    return _session_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A real Redis that the test may kill."""
    server = start_redis(tmp_path)
    yield server
    server.stop()
