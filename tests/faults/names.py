"""A name server of the test's own, whose answers may change."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import free_port

_FOUND_IN = "/usr/sbin:/usr/local/sbin:/sbin"


@dataclass
class NameServer:
    """A dnsmasq on loopback.

    Attributes:
        port: where it answers, over UDP and TCP.
    """

    port: int
    hosts: Path
    command: list[str]
    process: subprocess.Popen[bytes]

    def target(self, name: str, port: int) -> str:
        """Return how gRPC asks this server for a name."""
        return f"dns://127.0.0.1:{self.port}/{name}:{port}"

    def set(self, name: str, addresses: Sequence[str]) -> None:
        """Let a name stand for these addresses from now on."""
        self.hosts.write_text("".join(f"{address} {name}\n" for address in addresses))
        self.process.send_signal(signal.SIGHUP)

    def hush(self) -> None:
        """Answer nothing any more; whatever is asked meanwhile is lost."""
        self.process.send_signal(signal.SIGSTOP)

    def begin_anew(self) -> None:
        """Answer again, knowing what was set last, but not what was asked."""
        self.stop()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for(self.port, self.process)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def name_server(folder: Path) -> Iterator[NameServer]:
    """Run a name server that knows no names but those it is told; skip the test where dnsmasq is not installed."""
    program = shutil.which("dnsmasq") or shutil.which("dnsmasq", path=_FOUND_IN)
    if program is None:
        pytest.skip("dnsmasq is not installed; 'make faults' installs it where it may")
    port = free_port()
    hosts = folder / "hosts"
    hosts.write_text("")
    options = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--no-daemon", "--log-facility=-", "--local-ttl=0"]
    addresses = ["--listen-address=127.0.0.1", "--bind-interfaces", f"--port={port}", f"--addn-hosts={hosts}"]
    command = [program, *options, *addresses, "--conf-file=/dev/null", "--pid-file="]
    with (folder / "dnsmasq.log").open("wb") as log:
        server = NameServer(port, hosts, command, subprocess.Popen(command, stdout=log, stderr=log))
    try:
        _wait_for(port, server.process)
        yield server
    finally:
        server.stop()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, "dnsmasq ended"
            assert time.monotonic() < until, "dnsmasq does not answer"
            time.sleep(0.02)
