"""One replica at one address, which can be killed, frozen, drained and started again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.proxy import ChaosProxy
from tests.integration.processes import STOP_S, Process, spawn, wait_for_gateway, wait_for_grpc

LOOPBACK = "127.0.0.1"


@dataclass
class Replica:
    """One replica at one address, through all of its processes.

    Attributes:
        module: the service, such as `encoder_service`.
        port: where it listens, each time.
        environment: its settings; a change counts from the next start.
        proxy: what stands in front of it, if anything does.
    """

    module: str
    port: int
    folder: Path
    environment: dict[str, str]
    proxy: ChaosProxy | None = None
    host: str = LOOPBACK
    _processes: list[Process] = field(default_factory=list)
    _starts = itertools.count()

    @property
    def process(self) -> Process:
        """Its latest process."""
        return self._processes[-1]

    @property
    def pid(self) -> int:
        """The id of its latest process."""
        return self.process.popen.pid

    @property
    def alive(self) -> bool:
        """Whether its latest process runs."""
        return bool(self._processes) and self.process.popen.poll() is None

    @property
    def target(self) -> str:
        """Where callers find it, over gRPC: behind its proxy, if it has one."""
        return self.proxy.target if self.proxy else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where callers find it, over HTTP."""
        return f"http://{self.target}"

    def start(self) -> None:
        """Start a process, and do not wait for it."""
        folder = self.folder / f"start-{next(self._starts)}"
        folder.mkdir(parents=True)
        arguments = ["-m", self.module, "--host", self.host, "--port", str(self.port)]
        process = spawn(arguments, folder, self.port, self.environment)
        process.host = self.host
        self._processes.append(process)

    def wait(self) -> None:
        """Wait until it is ready."""
        (wait_for_gateway if self.module == "gateway" else wait_for_grpc)(self.process)

    def restart(self) -> None:
        """Start it if it does not run, and wait until it is ready."""
        if not self.alive:
            self.start()
        self.wait()

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.popen.kill()
        self.process.popen.wait()

    def drain(self) -> int:
        """End it as an orchestrator does; return its exit status."""
        self.process.popen.terminate()
        return self.process.popen.wait(STOP_S)

    def freeze(self) -> None:
        """Stop it without ending it."""
        self.process.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.popen.send_signal(signal.SIGCONT)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of one kind, of all of its processes."""
        found = []
        for process in self._processes:
            for line in process.log.read_text(errors="replace").splitlines():
                if name in line and line.startswith("{"):
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue  # The last line of a process that was killed while it wrote.
                    if entry.get("event") == name:
                        found.append(entry)
        return found

    def usage(self) -> Usage:
        """Return what its process holds now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        numbers = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return Usage(
            rss_mib=int(numbers["VmRSS"].split()[0]) / 1024,
            fds=len(os.listdir(f"/proc/{self.pid}/fd")),
            threads=int(numbers["Threads"]),
        )


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    rss_mib: float
    fds: int
    threads: int


def wait_until(condition: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Wait for a condition; return how long it took, in seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started
