"""`samovar doctor`: what it finds, and that it says what to do."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sam.published import PUBLISHED
from samovar.certs import CA, CLIENT, CLIENT_KEY, SERVER, SERVER_KEY, write_certificates
from samovar.doctor import (
    CHECKS,
    Finding,
    Verdict,
    check_device,
    check_listening,
    check_python,
    check_store,
    check_weights,
    command,
    look_at_access,
)
from samovar.settings import ServeSettings
from tests.conftest import RedisServer, free_port
from tests.sam.file_server import FileServer


def settings(**values: object) -> ServeSettings:
    """Return settings that reach nothing outside, whatever the environment says."""
    plain = {"model": None, "checkpoint": None, "redis_url": None, "port": 0, "weights_url": nowhere()}
    return ServeSettings.model_validate(plain | values)


def nowhere() -> str:
    """Return an address at which nothing listens."""
    return f"http://127.0.0.1:{free_port()}/"


def only(findings: Iterator[Finding]) -> Finding:
    """Return the one finding that there is."""
    (finding,) = findings
    return finding


def doctor(*arguments: str) -> Result:
    """Run `samovar doctor`."""
    return CliRunner().invoke(command, arguments)


def test_a_machine_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is there, the exit status is 0, and nothing was made or fetched."""
    monkeypatch.chdir(tmp_path)
    done = doctor("--checkpoint", "random:0", "--port", "0")
    assert done.exit_code == 0, done.output
    assert "PROBLEM" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_machine_out_of_order() -> None:
    """Every problem is listed at once, and the exit status is 1."""
    done = doctor("--checkpoint", "nothing.pth", "--redis-url", f"redis://127.0.0.1:{free_port()}")
    assert done.exit_code == 1
    assert done.output.count("PROBLEM") >= 2


def test_problems_say_what_to_do() -> None:
    """Whatever is wrong comes with advice."""
    wrong = settings(checkpoint="nothing.pth", device="cuda", redis_url=f"redis://127.0.0.1:{free_port()}", port=1)
    findings = [finding for check in CHECKS for finding in check(wrong)]
    problems = [finding for finding in findings if finding.verdict is Verdict.PROBLEM]
    assert len(problems) >= 2
    assert all(finding.advice for finding in problems)


def test_packages_and_device() -> None:
    """With all packages there, both say so, and a GPU that is asked for and not there is a problem."""
    assert only(check_python(settings())).verdict is Verdict.GOOD
    assert only(check_device(settings(device="auto"))).verdict is Verdict.GOOD
    import torch

    if not torch.cuda.is_available():
        assert only(check_device(settings(device="cuda"))).verdict is Verdict.PROBLEM


def test_weights_that_can_be_downloaded(tmp_path: Path) -> None:
    """A checkpoint that is not there but can be had is a note, and is not downloaded."""
    with FileServer(b"").running() as mirror:
        finding = only(check_weights(settings(weights_dir=tmp_path, weights_url=mirror.base_url)))
    assert finding.verdict is Verdict.NOTE
    assert "358 MiB" in finding.advice
    assert mirror.ranges == []
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_had(tmp_path: Path) -> None:
    """A checkpoint that was asked for and cannot be had is a problem that names a mirror as the way out."""
    finding = only(check_weights(settings(model="vit_h", weights_dir=tmp_path)))
    assert finding.verdict is Verdict.PROBLEM
    assert "--weights-url" in finding.advice


def test_weights_that_are_wrong(tmp_path: Path) -> None:
    """A file that only has a published name is a problem."""
    (tmp_path / PUBLISHED["vit_b"].file_name).write_bytes(b"something else")
    assert only(check_weights(settings(weights_dir=tmp_path))).verdict is Verdict.PROBLEM


def test_no_room_for_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is too full for the download is a problem."""
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with FileServer(b"").running() as mirror:
        _, room = check_weights(settings(weights_dir=tmp_path / "not" / "yet", weights_url=mirror.base_url))
    assert room.verdict is Verdict.PROBLEM


def test_redis(redis_server: RedisServer) -> None:
    """A Redis that answers is good, and its password is not shown."""
    assert only(check_store(settings(redis_url=redis_server.url))).verdict is Verdict.GOOD
    finding = only(check_store(settings(redis_url=f"redis://user:secret@127.0.0.1:{free_port()}/0")))
    assert finding.verdict is Verdict.PROBLEM
    assert "secret" not in finding.what + finding.advice
    assert only(check_store(settings(redis_url="localhost:6379"))).verdict is Verdict.PROBLEM


def test_keys_and_certificates(tmp_path: Path) -> None:
    """Files that can be used are good, in a few words; one that cannot is a problem that names it."""
    write_certificates(tmp_path)
    (tmp_path / "keys").write_text("a-key\n")
    (tmp_path / "keys").chmod(0o600)
    (tmp_path / "wrong").write_text("a-key rate=fast\n")
    server = {"grpc_tls_cert": tmp_path / SERVER, "grpc_tls_key": tmp_path / SERVER_KEY, "grpc_tls_ca": tmp_path / CA}
    client = {"grpc_tls_client_cert": tmp_path / CLIENT, "grpc_tls_client_key": tmp_path / CLIENT_KEY}
    mutual: dict[str, object] = {**server, "grpc_tls_client_ca": tmp_path / CA}
    good: dict[str, dict[str, object]] = {
        "everyone who reaches it may call; HTTP, gRPC in plain text": {},
        "holders of a key may call; HTTP, gRPC with TLS (on)": {**server, "api_keys_file": tmp_path / "keys"},
        "everyone who reaches it may call; HTTP, gRPC with TLS (mutual)": {**mutual, **client},
    }
    for what, values in good.items():
        assert only(look_at_access(settings(**values))) == (Verdict.GOOD, what, "")
    wrong: dict[str, dict[str, object]] = {
        "line 1": {"api_keys_file": tmp_path / "wrong"},
        "--grpc-tls-ca": {**server, "grpc_tls_ca": None},
        "--grpc-tls-client-cert": mutual,
        "is not that of": {"http_tls_cert": tmp_path / SERVER, "http_tls_key": tmp_path / CLIENT_KEY},
        "--api-keys-file": {"key_concurrency": 3},
    }
    for said, values in wrong.items():
        finding = only(look_at_access(settings(**values)))
        assert finding.verdict is Verdict.PROBLEM
        assert said in finding.advice


def test_secrets_that_others_may_read(tmp_path: Path) -> None:
    """A file of keys that is not its owner's alone is a note that says what to do."""
    (tmp_path / "keys").write_text("a-key\n")
    (tmp_path / "keys").chmod(0o644)
    good, note = look_at_access(settings(api_keys_file=tmp_path / "keys"))
    assert (good.verdict, note.verdict) == (Verdict.GOOD, Verdict.NOTE)
    assert str(tmp_path / "keys") in note.what
    assert "chmod 600" in note.advice


def test_ports() -> None:
    """A port in use is a problem that names the flag to change it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = settings(port=free_port(), encoder_port=taken.getsockname()[1], decoder_port=0)
        verdicts = {finding.what.split()[0]: finding for finding in check_listening(wanted)}
    assert verdicts["--port"].verdict is Verdict.GOOD
    assert verdicts["--encoder-port"].verdict is Verdict.PROBLEM
    assert "--encoder-port" in verdicts["--encoder-port"].advice
