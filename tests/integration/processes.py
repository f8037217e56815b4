"""Starts the services as an operator does, as processes of their own, and stops them again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sam.rpc.credentials import channel_credentials
from sam.tls import Tls
from samovar.certs import CA, CLIENT, CLIENT_KEY, SERVER, SERVER_KEY, write_certificates
from tests.conftest import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 90.0
STOP_S = 30.0

RANDOM_MODEL = {"SAMOVAR_MODEL": "starter", "SAMOVAR_CHECKPOINT": "random:0"}
"""The smallest architecture with seeded weights: what is tested here is the way, not the masks."""


@dataclass
class Process:
    """A service under test."""

    port: int
    log: Path
    popen: subprocess.Popen[bytes]
    host: str = "127.0.0.1"
    tls: Tls | None = None

    @property
    def url(self) -> str:
        """Its HTTP address, if it is a gateway."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """Its gRPC address, if it is not."""
        return f"{self.host}:{self.port}"

    def http(self, **options: Any) -> httpx2.Client:
        """Return an HTTP client of it, if it is a gateway."""
        verify = self.tls.context() if self.tls else True
        return httpx2.Client(base_url=self.url, verify=verify, **options)

    def channel(self) -> grpc.Channel:
        """Return a channel to it, if it is not."""
        if self.tls is None:
            return grpc.insecure_channel(self.target)
        return grpc.secure_channel(self.target, channel_credentials(self.tls))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status; it must end within a bound."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(STOP_S)


def spawn(arguments: list[str], folder: Path, port: int, environment: Mapping[str, str]) -> Process:
    """Start `python ARGUMENTS`; its output goes to a file in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SAMOVAR_")}
    log = folder / f"{arguments[1]}-{port or free_port()}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**inherited, "SAMOVAR_DRAIN_S": "1", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Process(port, log, popen)


@contextmanager
def spawned(
    module: str,
    folder: Path,
    environment: Mapping[str, str],
    arguments: tuple[str, ...] = (),
    tls: Tls | None = None,
) -> Iterator[Process]:
    """Start `python -m MODULE` on a free port; it is killed on exit if it is still there.

    With `tls`, that is how it is spoken to; `environment` has to tell the service of it.
    """
    port = free_port()
    process = spawn(["-m", module, *arguments, "--port", str(port)], folder, port, environment)
    process.tls = tls
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait()


@contextmanager
def service(
    module: str,
    folder: Path,
    environment: Mapping[str, str],
    arguments: tuple[str, ...] = (),
    tls: Tls | None = None,
) -> Iterator[Process]:
    """Run a service as `spawned` does, healthy on entry."""
    with spawned(module, folder, environment, arguments, tls) as process:
        (wait_for_gateway if module in {"gateway", "samovar"} else wait_for_grpc)(process)
        yield process


def wait_for_gateway(process: Process) -> None:
    """Wait until a gateway is ready."""
    with process.http(timeout=2) as client:
        _wait(process, lambda: client.get("/readiness").status_code == 200)


def wait_for_grpc(process: Process) -> None:
    """Wait until a gRPC service reports SERVING."""

    def serving() -> bool:
        with process.channel() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    _wait(process, serving)


def _wait(process: Process, ready: object) -> None:
    until = time.monotonic() + START_S
    while True:
        if process.popen.poll() is not None or time.monotonic() > until:
            raise AssertionError(f"{process.log.stem} did not become ready:\n{process.log.read_text()[-4000:]}")
        try:
            if ready():  # type: ignore[operator]
                return
        except (httpx2.HTTPError, grpc.RpcError):
            pass
        time.sleep(0.05)


@dataclass
class Stack:
    """Encoders, decoders and a gateway in front of them, over one Redis."""

    encoders: list[Process]
    decoders: list[Process]
    gateway: Process

    def stop(self) -> None:
        """Stop all of it as `docker compose down` does; every process must end well."""
        processes = [self.gateway, *self.decoders, *self.encoders]
        for process in processes:
            process.popen.terminate()
        for process in processes:
            assert process.popen.wait(STOP_S) == 0, process.log.read_text()[-2000:]


@contextmanager
def stack(
    folder: Path,
    redis_url: str,
    *,
    encoders: int,
    decoders: int,
    environment: Mapping[str, str],
    tls: Tls | None = None,
) -> Iterator[Stack]:
    """Run the split roles, as compose does, until the block is left.

    With `tls`, that is how all of them are spoken to; see `mutual_tls`.
    """
    common = {"SAMOVAR_REDIS_URL": redis_url, **environment}
    with ExitStack() as running:
        # Started together, because most of a start is reading torch from disk.
        encoding, decoding = (
            [running.enter_context(spawned(module, folder, common, tls=tls)) for _ in range(count)]
            for module, count in (("encoder_service", encoders), ("decoder_service", decoders))
        )
        targets = {
            "SAMOVAR_ENCODER_TARGET": "ipv4:" + ",".join(process.target for process in encoding),
            "SAMOVAR_DECODER_TARGET": "ipv4:" + ",".join(process.target for process in decoding),
        }
        gateway = running.enter_context(spawned("gateway", folder, {**environment, **targets}, tls=tls))
        for process in [*encoding, *decoding]:
            wait_for_grpc(process)
        wait_for_gateway(gateway)
        yield Stack(encoding, decoding, gateway)


def mutual_tls(folder: Path) -> tuple[Tls, dict[str, str]]:
    """Write certificates; return how to speak to services that use them, and the settings of these."""
    write_certificates(folder)
    tls = Tls(folder / CA, folder / CLIENT, folder / CLIENT_KEY)
    settings = {
        "HTTP_TLS_CERT": SERVER,
        "HTTP_TLS_KEY": SERVER_KEY,
        "GRPC_TLS_CERT": SERVER,
        "GRPC_TLS_KEY": SERVER_KEY,
        "GRPC_TLS_CLIENT_CA": CA,
        "GRPC_TLS_CA": CA,
        "GRPC_TLS_CLIENT_CERT": CLIENT,
        "GRPC_TLS_CLIENT_KEY": CLIENT_KEY,
    }
    files = {f"SAMOVAR_{name}": str(folder / file) for name, file in settings.items()}
    # Replicas are listed by their addresses, and a list is no name that a certificate could have.
    return tls, {**files, "SAMOVAR_GRPC_TLS_SERVER_NAME": "localhost"}
