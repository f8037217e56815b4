"""What the containers run, run by hand: their commands, their variables, their own health checks."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sam.published import starter_checkpoint
from samovar.certs import write_certificates
from tests.conftest import free_port
from tests.deploy.acl_redis import AclRedis, start_acl_redis
from tests.deploy.compose import ROOT, load_compose
from tests.deploy.dockerfile import SERVICES, Image, read_dockerfile
from tests.samovar.processes import environment, wait_until

COMPOSE = load_compose()["services"]
SECURE = load_compose("docker-compose.secure.yml")["services"]
NAMES = {"encoder_service": "encoder", "decoder_service": "decoder", "gateway": "gateway"}
# A few seconds on an idle machine; the bound is for a busy one.
HEALTHY_WITHIN_S = 120
# A dozen seconds at most by their settings, which test_compose.py holds against the grace period.
GONE_WITHIN_S = 60


@dataclass
class Container:
    """One container's file system, variables and commands, outside of a container."""

    image: Image
    folder: Path
    variables: dict[str, str]
    ports: dict[str, str]

    def run(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command as Docker would."""
        program, *arguments = (self._here(word) for word in command)
        programs = {"python": [sys.executable], "samovar": [sys.executable, "-m", "samovar"]}
        return subprocess.Popen(
            [*programs[program], *arguments],
            cwd=self.folder,
            env=environment(**self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def listens(self) -> bool:
        """Return whether its port is open: asking costs nothing, while a health check is a process."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.variables["SAMOVAR_PORT"]))) == 0

    def is_healthy(self) -> bool:
        """Run the health check."""
        with self.run(self.image.healthcheck) as check:
            check.communicate(timeout=30)
        return check.returncode == 0

    def _here(self, word: str) -> str:
        for inside, here in self.ports.items():
            word = word.replace(inside, here)
        return word


def build(
    service: str, folder: Path, ports: dict[str, str], compose: dict[str, Any] = COMPOSE, **variables: str
) -> Container:
    """Lay out what the image of a service holds, and say what its container is told."""
    image = read_dockerfile(service).image
    for sources, destination in image.copies:
        for source in sources:
            shutil.copytree(ROOT / source, folder / destination, ignore=shutil.ignore_patterns("__pycache__"))
    told = {key: value for key, value in image.environment.items() if key != "PATH"}
    told |= compose[NAMES[service]]["environment"]
    container = Container(image, folder, {}, ports)
    weights = str(folder / "weights")
    places = {"PYTHONPATH": str(folder), "SAMOVAR_HOST": "127.0.0.1", "SAMOVAR_WEIGHTS_DIR": weights}
    container.variables = {key: container._here(value) for key, value in (told | places | variables).items()}
    return container


@pytest.fixture
def redis_by_compose(tmp_path: Path) -> Iterator[AclRedis]:
    """The Redis that compose would start."""
    (tmp_path / "redis").mkdir()
    server = start_acl_redis(tmp_path / "redis")
    yield server
    server.stop()


@pytest.mark.parametrize("compose", [COMPOSE, SECURE], ids=["as it comes", "with keys and TLS"])
def test_the_system_comes_up_and_goes_down(redis_by_compose: AclRedis, tmp_path: Path, compose: dict[str, Any]) -> None:
    """Every container becomes healthy by its own check, and SIGTERM ends each by itself."""
    write_certificates(tmp_path / "secrets")
    (tmp_path / "secrets" / "api-keys").write_text("a-key\n")
    inside = {"encoder_service": "50051", "decoder_service": "50052", "gateway": "9001"}
    listening = {service: str(free_port()) for service in SERVICES}
    ports = {"redis:6379": f"127.0.0.1:{redis_by_compose.port}"}
    ports |= {"/run/secrets": str(tmp_path / "secrets")}
    ports |= {"/run/redis/password": str(redis_by_compose.password_file)}
    ports |= {f"{NAMES[service]}:{inside[service]}": f"127.0.0.1:{listening[service]}" for service in SERVICES}
    ports |= {f"127.0.0.1:{inside[service]}": f"127.0.0.1:{listening[service]}" for service in SERVICES}
    running: dict[str, tuple[Container, subprocess.Popen[str]]] = {}
    try:
        for service in SERVICES:
            # Containers have a network each; here all of them share one.
            own = {"SAMOVAR_PORT": listening[service], "SAMOVAR_METRICS_PORT": "0"}
            own |= {} if service == "gateway" else {"SAMOVAR_CHECKPOINT": "random:0"}
            container = build(service, tmp_path / service, ports, compose, **own)
            running[service] = (container, container.run(container.image.command))
        assert not running["encoder_service"][0].is_healthy(), "healthy before its weights can have been loaded"
        for container, process in running.values():
            wait_until(container.listens, process, timeout_s=HEALTHY_WITHIN_S)
            wait_until(container.is_healthy, process, timeout_s=HEALTHY_WITHIN_S)
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            said = _last_words(process)
            assert process.returncode == 0, said
            assert "Traceback" not in said
    finally:
        for _, process in running.values():
            process.kill()
            process.communicate()


def _last_words(process: subprocess.Popen[str]) -> str:
    """Wait until a process has ended and return what it has written; where it hangs, if it does."""
    try:
        return process.communicate(timeout=GONE_WITHIN_S)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return process.communicate()[0]


@pytest.mark.parametrize("variables", [{}, {"SAMOVAR_MODEL": "vit_h"}])
def test_weights_without_a_network(tmp_path: Path, variables: dict[str, str]) -> None:
    """Without a network the weights container lets the others start only with a starter and with no model named."""
    exit_status = 0 if starter_checkpoint() is not None and not variables else 1
    told = COMPOSE["weights"]["environment"] | {"SAMOVAR_WEIGHTS_URL": f"http://127.0.0.1:{free_port()}/"}
    container = build("decoder_service", tmp_path, {}, **(told | variables))
    with container.run(COMPOSE["weights"]["command"]) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == exit_status, said
    assert "Traceback" not in said
