"""`samovar serve` as a person runs it: one process, three services, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.errors import StartupError, StoreUnavailable
from samovar import healthcheck, local, serve
from samovar.banner import Addresses, banner
from samovar.ports import check_ports
from samovar.settings import ServeSettings
from tests.conftest import free_port
from tests.samovar.processes import SAMOVAR, environment, run_samovar, wait_until


@dataclass
class Serving:
    """A running `samovar serve` and what it has said so far."""

    process: subprocess.Popen[str]
    said: Path
    logged: Path

    def announced(self) -> str:
        """Return what it says once it serves; empty until then."""
        text = self.said.read_text()
        return text if "Stop  " in text else ""

    def url(self) -> str:
        """Return where it serves HTTP."""
        (url,) = re.findall(r"HTTP +(http://\S+)", self.announced())
        return str(url)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def starting(folder: Path) -> Iterator[Serving]:
    """Start `samovar serve` with random weights on ports of the system's choice; do not wait."""
    said, logged = folder / "said", folder / "logged"
    command = [*SAMOVAR, "serve", "--checkpoint", "random:0", "--port", "0"]
    with said.open("w") as out, logged.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=out, stderr=log, text=True)
    try:
        yield Serving(process, said, logged)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A `samovar serve` that serves, for the tests that only look at it; the last of them stops it."""
    with starting(tmp_path_factory.mktemp("serve")) as running:
        wait_until(lambda: bool(running.announced()), running.process)
        yield running


@contextmanager
def taken_port() -> Iterator[int]:
    """Listen on a port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def healthy(*arguments: str) -> bool:
    """Run the bundled health check."""
    return CliRunner().invoke(healthcheck.command, arguments).exit_code == 0


def test_it_says_what_it_serves(serving: Serving) -> None:
    """At the start it says model, origin, fingerprint, store, addresses and how to stop, and warns."""
    said = serving.announced()
    for expected in (
        r"Model +vit_b, random weights",
        r"fingerprint [0-9a-f]{64}",
        r"Try it +http://127\.0\.0\.1:\d+/demo",
        r"gRPC +encoder 127\.0\.0\.1:\d+, decoder 127\.0\.0\.1:\d+",
        r"Store +in this process, at most 1,024 MiB",
        r"Stop +Ctrl-C",
        r"WARNING Random weights: the masks mean nothing",
        r"WARNING Embeddings are lost on exit",
    ):
        assert re.search(expected, said), expected


def test_what_it_says_is_true(serving: Serving) -> None:
    """Every address that it names answers, and the model is the one that it names."""
    said = serving.announced()
    assert healthy("http", f"{serving.url()}/readiness")
    assert healthy("http", f"{serving.url()}/demo")
    for service, port in re.findall(r"(encoder|decoder) 127\.0\.0\.1:(\d+)", said):
        name = f"sam.v1.{service.title()}Service"
        assert healthy("grpc", f"127.0.0.1:{port}", "--service", name)
    with urllib.request.urlopen(f"{serving.url()}/model/registry", timeout=10) as response:  # noqa: S310 (our own)
        (model,) = json.load(response)["models"]
    assert model["fingerprint"] in said


def test_ctrl_c(serving: Serving) -> None:
    """Ctrl-C stops it cleanly, soon, with exit status 0 and nothing left listening."""
    port = int(serving.url().rsplit(":", 1)[1])
    started = time.monotonic()
    assert serving.stop() == 0
    assert time.monotonic() - started < 15
    assert "Traceback" not in serving.logged.read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_in_use_is_one_line() -> None:
    """A port in use is one line and exit status 1, before anything is loaded."""
    with taken_port() as port:
        done = run_samovar("serve", "--checkpoint", "nothing.pth", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: Cannot listen on 127.0.0.1:{port}: Address already in use. Choose another port with --port.\n"
    )


@pytest.mark.parametrize("flag", ["--encoder-port", "--decoder-port"])
def test_every_port_is_checked(flag: str) -> None:
    """The ports of the other two services are checked as well, and the flag is named that chooses another."""
    with taken_port() as port:
        settings = ServeSettings.model_validate({"port": free_port(), flag[2:].replace("-", "_"): port})
        with pytest.raises(StartupError, match=rf"Cannot listen on 127\.0\.0\.1:{port}: .* with {flag}"):
            check_ports(settings.host, settings.ports)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint": "random:x"}, "--checkpoint random:SEED needs a whole number"),
        ({"redis_url": "localhost"}, "--redis-url is no URL of a Redis"),
        ({"api_keys_file": "nothing"}, "The API keys file nothing cannot be read"),
        ({"host": "192.0.2.1"}, r"Cannot listen on 192\.0\.2\.1:"),
        ({"host": "no.such.host.invalid"}, "no.such.host.invalid is no address of this machine"),
        ({"port": 65535}, "There is no port 65537"),
    ],
)
def test_what_cannot_be_served(values: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that keeps it from serving is told in words that say what to change."""
    monkeypatch.setattr(serve, "configure_logs", lambda *_: None)
    settings = ServeSettings.model_validate({"checkpoint": "random:0", "port": 0} | values)
    with pytest.raises(StartupError, match=message):
        serve.run(settings)


@pytest.mark.parametrize("origin", list(CheckpointOrigin))
def test_it_warns_of_what_people_would_regret(origin: CheckpointOrigin) -> None:
    """Weights that are not SAM's, a store that is lost and a door that is open are warned of; what is fine is not."""
    model = ModelIdentity("vit_b", "ab" * 32, origin)
    safe = ServeSettings(redis_url="redis://user:secret@cache/0")
    said = banner(safe, model, Addresses("127.0.0.1", 1, 2, 3))
    assert ("WARNING" in said) == (origin in (CheckpointOrigin.STARTER, CheckpointOrigin.RANDOM))
    assert "Redis at cache:6379/0" in said
    assert "secret" not in said
    open_to_all = banner(ServeSettings(), model, Addresses("::", 1, 2, 3))
    assert "Embeddings are lost on exit" in open_to_all
    assert "Everyone who reaches this machine may call" in open_to_all
    assert "http://127.0.0.1:1/demo" in open_to_all


def test_redis_that_is_not_there() -> None:
    """A Redis that does not answer keeps it from serving, soon, and is named without its password."""
    settings = ServeSettings(checkpoint="random:0", port=0, redis_url=f"redis://u:secret@127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreUnavailable, match=r"The embedding store at 127\.0\.0\.1:\d+/0") as failure:
        local.serve(settings)
    assert "secret" not in str(failure.value)
