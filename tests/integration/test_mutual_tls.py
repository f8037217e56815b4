"""TLS from end to end: who gets through, who does not, and that nobody is kept waiting for it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from sam.rpc.credentials import channel_credentials
from sam.tls import Tls
from sam.v1 import decoder_service_pb2, decoder_service_pb2_grpc
from samovar.certs import CA, CLIENT, CLIENT_KEY, write_certificates
from samovar.client import AsyncSamClient, SamClient, ServerUnreachable
from samovar.client.errors import SamovarError
from samovar.client.grpc import SamGrpcClient
from tests.conftest import RedisServer, free_port
from tests.faults.deployment import stub
from tests.integration.processes import Process, Stack, mutual_tls, spawn, stack
from tests.photographs import photograph
from tests.samovar.clients import grpc_client
from tests.samovar.processes import run_samovar

REFUSED_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tls, dict[str, str]]:
    """How the services are spoken to, and their settings."""
    return mutual_tls(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, redis_of_stack: RedisServer, certificates: tuple[Tls, dict[str, str]]
) -> Iterator[Stack]:
    """One of each service, with a model that costs nothing."""
    tls, settings = certificates
    environment = {**stub(), **settings}
    folder = tmp_path_factory.mktemp("stack")
    with stack(folder, redis_of_stack.url, encoders=1, decoders=1, environment=environment, tls=tls) as processes:
        yield processes
        processes.stop()


@pytest.fixture
def tls(certificates: tuple[Tls, dict[str, str]]) -> Tls:
    """What a caller has that may call."""
    return certificates[0]


def ask(channel: grpc.Channel) -> tuple[grpc.StatusCode, float]:
    """Ask for the model; return the status and how long it took to come."""
    stub: Any = decoder_service_pb2_grpc.DecoderServiceStub(channel)
    started = time.monotonic()
    try:
        stub.GetModel(decoder_service_pb2.GetModelRequest(), timeout=30)
    except grpc.RpcError as error:
        return error.code(), time.monotonic() - started
    return grpc.StatusCode.OK, time.monotonic() - started


def test_who_has_a_certificate_of_the_authority_gets_through(running: Stack) -> None:
    """A caller with the right certificate is answered by each service."""
    with running.decoders[0].channel() as channel:
        assert ask(channel)[0] is grpc.StatusCode.OK


@pytest.mark.parametrize("caller", ["plain text", "no certificate", "another authority's", "trusts another authority"])
def test_others_are_refused_at_once(running: Stack, tls: Tls, tmp_path: Path, caller: str) -> None:
    """Plain text, no certificate, and one of another authority end with UNAVAILABLE, and nobody waits for it."""
    write_certificates(tmp_path / "others")
    target = running.decoders[0].target
    if caller == "plain text":
        channel = grpc.insecure_channel(target)
    elif caller == "no certificate":
        channel = grpc.secure_channel(target, channel_credentials(Tls(tls.ca)))
    elif caller == "another authority's":
        foreign = Tls(tls.ca, tmp_path / "others" / CLIENT, tmp_path / "others" / CLIENT_KEY)
        channel = grpc.secure_channel(target, channel_credentials(foreign))
    else:
        mistrusting = Tls(tmp_path / "others" / CA, tls.cert, tls.key)
        channel = grpc.secure_channel(target, channel_credentials(mistrusting))
    with channel:
        code, seconds = ask(channel)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert seconds < REFUSED_WITHIN_S
    with running.decoders[0].channel() as still:
        assert ask(still)[0] is grpc.StatusCode.OK


def test_a_certificate_for_another_host_is_not_believed(running: Stack, tls: Tls) -> None:
    """A server whose certificate has another name is not spoken to."""
    named = Tls(tls.ca, tls.cert, tls.key, server_name="bank.example")
    client = SamGrpcClient(encoder="127.0.0.1:1", decoder=running.decoders[0].target, tls=named)
    with client, pytest.raises(ServerUnreachable):
        client.model(timeout_s=REFUSED_WITHIN_S)


def test_plain_http_at_an_https_gateway_is_refused_at_once(running: Stack) -> None:
    """A request in plain text, bytes that are no TLS, and a caller that trusts others get no answer, soon."""
    port = running.gateway.port
    started = time.monotonic()
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(f"http://127.0.0.1:{port}/", timeout=REFUSED_WITHIN_S, trust_env=False)
    with pytest.raises(httpx2.HTTPError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx2.get(f"https://127.0.0.1:{port}/", timeout=REFUSED_WITHIN_S, trust_env=False)
    with socket.create_connection(("127.0.0.1", port), timeout=REFUSED_WITHIN_S) as raw:
        raw.sendall(b"\x00" * 512)
        while raw.recv(4096):
            pass
    assert time.monotonic() - started < REFUSED_WITHIN_S
    with running.gateway.http() as client:
        assert client.get("/readiness").status_code == 200


def test_an_old_protocol_is_not_spoken(running: Stack, tls: Tls) -> None:
    """Neither the gateway nor a service speaks anything older than TLS 1.2."""
    for process in (running.gateway, running.decoders[0]):
        context = tls.context()
        context.check_hostname = False
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        # Otherwise it would be this client that does not speak it.
        context.set_ciphers("ALL:@SECLEVEL=0")
        raw = socket.create_connection((process.host, process.port), timeout=REFUSED_WITHIN_S)
        with raw, pytest.raises(ssl.SSLError, match=r"ALERT_PROTOCOL_VERSION|UNEXPECTED_EOF"):
            context.wrap_socket(raw)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_the_clients_speak_it(running: Stack, tls: Tls, kind: str) -> None:
    """The clients of HTTP and of gRPC embed and segment, told of the authority and of their own certificate."""
    targets = {"encoder": running.encoders[0].target, "decoder": running.decoders[0].target}
    with grpc_client(kind, **targets, tls=tls) as direct:
        picture = direct.embed(photograph().read_bytes())
        by_grpc = direct.segment(picture, box=[100, 50, 500, 400])
    if kind == "blocking":
        with SamClient(running.gateway.url, tls=Tls(tls.ca)) as client:
            by_http = client.segment(photograph().read_bytes(), box=[100, 50, 500, 400])
    else:

        async def segmented() -> Any:
            async with AsyncSamClient(running.gateway.url, tls=Tls(tls.ca)) as client:
                return await client.segment(photograph().read_bytes(), box=[100, 50, 500, 400])

        by_http = asyncio.run(segmented())
    assert (by_http.masks == by_grpc.masks).all()


@pytest.mark.parametrize("kind", [SamClient, AsyncSamClient])
def test_the_clients_do_not_pretend_to_speak_it(kind: type[SamClient | AsyncSamClient], tls: Tls) -> None:
    """Certificates for an address in plain text, or beside an HTTP client that has its own, are a mistake."""
    with pytest.raises(ValueError, match="https"):
        kind("http://localhost:9001", tls=tls)
    own: Any = httpx2.Client() if kind is SamClient else httpx2.AsyncClient()
    with pytest.raises(ValueError, match="exclude"):
        kind("https://localhost:9001", tls=tls, http=own)


def test_the_commands_speak_it(running: Stack, tls: Tls, tmp_path: Path) -> None:
    """`samovar embed` and `samovar segment` take the authority by flag or variable, and miss it."""
    picture, server = str(photograph()), running.gateway.url
    embedded = run_samovar("embed", picture, "--server", server, "--tls-ca", str(tls.ca))
    assert embedded.returncode == 0, embedded.stderr
    arguments = ("segment", picture, "--point", "320,200", "-o", str(tmp_path / "mask.png"), "--server", server)
    segmented = run_samovar(*arguments, SAMOVAR_TLS_CA=str(tls.ca))
    assert segmented.returncode == 0, segmented.stderr
    unencrypted = (*arguments[:-1], server.replace("https", "http"), "--tls-ca", str(tls.ca))
    assert run_samovar(*unencrypted).returncode == 2
    mistrusting = run_samovar(*arguments)
    assert mistrusting.returncode == 1
    assert "certificate" in mistrusting.stderr.lower()
    assert "Traceback" not in mistrusting.stderr


def test_health_checks_need_no_more_than_the_servers_own_settings(
    running: Stack, certificates: tuple[Tls, dict[str, str]]
) -> None:
    """In a service's own environment its health check speaks TLS; elsewhere it is told that nobody answers."""
    own = {
        name: file for name, file in certificates[1].items() if "CLIENT_CERT" not in name and "CLIENT_KEY" not in name
    }
    target = running.decoders[0].target
    checks = {
        ("grpc", target, "--service", "sam.v1.DecoderService"): own,
        ("grpc", target): certificates[1],
        ("http", f"http://127.0.0.1:{running.gateway.port}/readiness"): own,
    }
    for arguments, environment in checks.items():
        done = run_samovar("healthcheck", *arguments, folder=None, **environment)
        assert done.returncode == 0, done.stderr
        refused = run_samovar("healthcheck", *arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Traceback" not in refused.stderr


def test_the_gateway_of_another_authority_reaches_nobody(
    running: Stack, certificates: tuple[Tls, dict[str, str]], tmp_path: Path
) -> None:
    """A gateway whose certificate the services do not accept is never ready, and answers 503 in time."""
    write_certificates(tmp_path / "others")
    foreign = {"SAMOVAR_GRPC_TLS_CLIENT_CERT": CLIENT, "SAMOVAR_GRPC_TLS_CLIENT_KEY": CLIENT_KEY}
    settings = certificates[1] | {name: str(tmp_path / "others" / file) for name, file in foreign.items()}
    settings |= {
        "SAMOVAR_ENCODER_TARGET": running.encoders[0].target,
        "SAMOVAR_DECODER_TARGET": running.decoders[0].target,
    }
    port = free_port()
    gateway = spawn(["-m", "gateway", "--port", str(port)], tmp_path, port, settings)
    gateway.tls = running.gateway.tls
    try:
        with gateway.http(timeout=60) as client:
            _wait_until_it_listens(gateway, client)
            assert client.get("/readiness").status_code == 503
            started = time.monotonic()
            answer = client.post("/sam/segment_image", json={"image_id": "x", "point_coords": [[1, 1]]})
            assert (answer.status_code, answer.json()["reason"]) == (503, "DECODER_UNAVAILABLE")
            assert time.monotonic() - started < 2 * REFUSED_WITHIN_S
    finally:
        gateway.stop()


def _wait_until_it_listens(gateway: Process, client: httpx2.Client) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            client.get("/healthz")
            return
        except httpx2.HTTPError:
            assert gateway.popen.poll() is None, gateway.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_wrong_file_ends_the_start_with_one_line(
    certificates: tuple[Tls, dict[str, str]], redis_of_stack: RedisServer, tmp_path: Path
) -> None:
    """A certificate that has expired, and a key of another, are named in one line when a service starts."""
    write_certificates(tmp_path / "old", days=-1)
    write_certificates(tmp_path / "others")
    fine = {**stub(), **certificates[1], "SAMOVAR_REDIS_URL": redis_of_stack.url}
    wrong = {
        "encoder_service": ({"SAMOVAR_GRPC_TLS_KEY": str(tmp_path / "others" / "server-key.pem")}, "is not that of"),
        "decoder_service": ({"SAMOVAR_GRPC_TLS_CLIENT_CA": str(tmp_path / "old" / "ca.pem")}, "expired"),
        "gateway": ({"SAMOVAR_HTTP_TLS_CERT": str(tmp_path / "gone.pem")}, "cannot be read"),
    }
    for module, (settings, words) in wrong.items():
        process = spawn(["-m", module, "--port", "0"], tmp_path, 0, fine | settings)
        assert process.popen.wait(60) == 1
        said = process.log.read_text()
        assert words in said.splitlines()[-1]
        assert "Traceback" not in said


def test_the_all_in_one_speaks_it_too(certificates: tuple[Tls, dict[str, str]], tmp_path: Path) -> None:
    """`samovar serve` serves HTTPS and mutual TLS with the same settings, and says so; half of them is refused."""
    tls, settings = certificates
    port = free_port()
    arguments = ["-m", "samovar", "serve", "--port", str(port), "--encoder-port", "0", "--decoder-port", "0"]
    process = spawn(arguments, tmp_path, port, {**stub(), **settings})
    process.tls = tls
    try:
        with process.http(timeout=60) as client:
            _wait_until_it_listens(process, client)
        with SamClient(process.url, tls=tls) as sam:
            assert sam.segment(photograph().read_bytes(), box=[100, 50, 500, 400]).masks.any()
            with pytest.raises(SamovarError):
                sam.segment(b"no picture", box=[1, 1, 2, 2])
    finally:
        process.stop()
    assert f"https://127.0.0.1:{port}" in process.log.read_text()
    half = {name: file for name, file in settings.items() if name != "SAMOVAR_GRPC_TLS_CA"}
    refused = spawn(arguments, tmp_path, 0, {**stub(), **half})
    assert refused.popen.wait(60) == 1
    assert "--grpc-tls-ca" in refused.log.read_text().splitlines()[-1]
