"""The Redis that the settings name, and the file of its password."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from redis.asyncio.connection import parse_url

from sam.embedding_store.opening import open_redis, with_password
from sam.embedding_store.redis_clients import describe
from sam.errors import StartupError, StoreUnavailable
from sam.settings import StoreSettings
from samovar.certs import CA, SERVER, SERVER_KEY, write_certificates
from tests.conftest import free_port

PASSWORD = "p@ss:w/rd?#%20 ü"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a password in which every sign means something to a URL."""
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


def test_a_password_is_put_into_the_url_as_it_is(file: Path) -> None:
    """Whatever is in the file is the password, with a user or without, and nothing of it is shown."""
    named = with_password("redis://samovar@redis:6379/1", file)
    found = parse_url(named)
    assert (found["username"], found["password"], found["host"], found["db"]) == ("samovar", PASSWORD, "redis", 1)
    assert parse_url(with_password("rediss://redis/0", file))["password"] == PASSWORD
    many = with_password("redis+sentinel://sam@one:1,two:2/master/0", file)
    assert describe(many) == "one:1,two:2/master/0"
    assert describe(named) == "redis:6379/1"


def test_what_is_wrong_is_told_in_one_line(file: Path, tmp_path: Path) -> None:
    """A file that is not there or empty, two passwords, and a URL that is none, are told without any password."""
    (tmp_path / "empty").write_text("\n")
    wrong = {
        ("redis://redis/0", tmp_path / "gone"): "cannot be read",
        ("redis://redis/0", tmp_path / "empty"): "is empty",
        ("redis://sam:other@redis/0", file): "Take it out of the URL",
        ("http://redis/0", file): "no URL of a Redis",
    }
    for (url, path), words in wrong.items():
        with pytest.raises(StartupError, match=words) as caught:
            open_redis(StoreSettings(redis_url=url, redis_password_file=path))
        assert "other" not in str(caught.value)
        assert "w%2Frd" not in str(caught.value)


def test_a_redis_that_speaks_tls(tmp_path: Path) -> None:
    """Over rediss:// the store is reached by whoever names its authority, and by nobody who does not trust it."""
    write_certificates(tmp_path)
    (tmp_path / "password").write_text("open-sesame")
    port = free_port()
    command = ["redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--tls-cert-file", str(tmp_path / SERVER), "--tls-key-file", str(tmp_path / SERVER_KEY)]
    command += ["--tls-ca-cert-file", str(tmp_path / CA), "--tls-auth-clients", "no", "--requirepass", "open-sesame"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = ""
            while "Ready to accept" not in said:
                line = server.stdout.readline() if server.stdout else ""
                if not line:
                    pytest.skip(f"this redis-server speaks no TLS: {said[-200:]}")
                said += line
            trusting = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / CA}"
            asyncio.run(_reach(trusting, tmp_path / "password"))
            with pytest.raises(StoreUnavailable):
                asyncio.run(_reach(f"rediss://127.0.0.1:{port}/0", tmp_path / "password"))
        finally:
            server.kill()


async def _reach(url: str, file: Path) -> None:
    backend = open_redis(StoreSettings(redis_url=url, redis_password_file=file))
    try:
        await backend.reach()
    finally:
        await backend.close()
