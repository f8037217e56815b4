"""The bundled health check, against real servers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import grpc
import pytest
from click.testing import CliRunner, Result
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from samovar.healthcheck import command
from tests.conftest import free_port
from tests.sam.file_server import FileServer

STATES = health_pb2.HealthCheckResponse


def check(*arguments: str) -> Result:
    """Run the health check."""
    return CliRunner().invoke(command, arguments)


@pytest.fixture
def grpc_target() -> Iterator[str]:
    """A server of which one service is ready and another is not."""
    port = free_port()
    stop = threading.Event()
    ready = threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await servicer.set("", STATES.SERVING)
        await servicer.set("ready", STATES.SERVING)
        await servicer.set("draining", STATES.NOT_SERVING)
        await server.start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(10)
    yield f"127.0.0.1:{port}"
    stop.set()
    thread.join()


def test_grpc(grpc_target: str) -> None:
    """A service that serves is healthy; one that drains or is unknown is not, and the reason is told."""
    assert check("grpc", grpc_target).exit_code == 0
    assert check("grpc", grpc_target, "--service", "ready").exit_code == 0
    draining = check("grpc", grpc_target, "--service", "draining")
    assert (draining.exit_code, draining.stderr) == (1, f"Error: {grpc_target}: NOT_SERVING\n")
    unknown = check("grpc", grpc_target, "--service", "unknown")
    assert (unknown.exit_code, unknown.stderr) == (1, f"Error: {grpc_target}: NOT_FOUND\n")


def test_nobody_there() -> None:
    """Where nothing listens, one line says so."""
    port = free_port()
    over_grpc = check("grpc", f"127.0.0.1:{port}", "--timeout-s", "1")
    assert over_grpc.exit_code == 1
    assert over_grpc.stderr.startswith(f"Error: 127.0.0.1:{port}: ")
    over_http = check("http", f"http://127.0.0.1:{port}/")
    assert over_http.exit_code == 1
    assert "refused" in over_http.stderr


@pytest.mark.parametrize(("status", "exit_code"), [(None, 0), (503, 1), (404, 1)])
def test_http(status: int | None, exit_code: int) -> None:
    """A good answer is healthy, any other is not."""
    with FileServer(b"{}", refuses_with=status).running() as server:
        result = check("http", server.base_url)
    assert result.exit_code == exit_code
    assert f"HTTP {status or 200}" in result.output + result.stderr


def test_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not asked for this machine's own address."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with FileServer(b"{}").running() as server:
        assert check("http", server.base_url).exit_code == 0


def test_other_schemes_are_refused() -> None:
    """Nothing but HTTP is asked."""
    assert check("http", "file:///etc/hostname").exit_code == 2
