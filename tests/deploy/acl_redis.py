"""The Redis of the compose file, outside of a container: its own script, its own list of users."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.conftest import free_port
from tests.deploy.compose import ROOT, load_compose

SCRIPTS = ROOT / "deploy" / "redis"


@dataclass
class AclRedis:
    """A redis-server that was started as the container is.

    Attributes:
        data: where its password lies.
    """

    port: int
    data: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """The URL for the services, without the password."""
        return f"redis://samovar@127.0.0.1:{self.port}/0"

    @property
    def password_file(self) -> Path:
        """The file of the password."""
        return self.data / "password"

    def client(self, username: str = "samovar", password: str | None = None) -> redis.Redis:
        """Return a blocking client, by default with the rights of the services."""
        secret = self.password_file.read_text() if password is None else password
        return redis.Redis(port=self.port, username=username, password=secret or None)

    def is_healthy(self) -> bool:
        """Run the container's own health check."""
        command = _words("healthcheck", "test", SCRIPTS)[1:]
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=30, check=False)
        return done.returncode == 0

    def stop(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


def start_acl_redis(folder: Path, *more_users: str) -> AclRedis:
    """Start the Redis of the compose file, healthy on return.

    Args:
        folder: its data and its temporary files.
        more_users: lines to add to a copy of its list of users.
    """
    if shutil.which("redis-server") is None:
        pytest.fail("redis-server is not installed; 'make test' installs it or says how")
    scripts = SCRIPTS
    if more_users:
        scripts = folder / "scripts"
        shutil.copytree(SCRIPTS, scripts)
        with (scripts / "users.acl").open("a") as users:
            users.writelines(f"{line}\n" for line in more_users)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    port = free_port()
    places = {"DATA": str(folder / "data"), "TMPDIR": str(folder / "tmp"), "PORT": str(port)}
    environment = {**os.environ, **places}
    command = [*_words("entrypoint", None, scripts), *_words("command", None, scripts)]
    own = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder / "tmp")]
    process = subprocess.Popen([*command, *own], env=environment, stdout=subprocess.DEVNULL)
    server = AclRedis(port, folder / "data", environment, process)
    until = time.monotonic() + 20
    while not server.is_healthy():
        if time.monotonic() > until or process.poll() is not None:
            server.stop()
            raise AssertionError("the Redis of the compose file did not become healthy")
        time.sleep(0.05)
    return server


def _words(key: str, inner: str | None, scripts: Path) -> list[str]:
    said = load_compose()["services"]["redis"][key]
    words = said[inner] if inner else said
    return [str(word).replace("/etc/samovar", str(scripts)) for word in words]
