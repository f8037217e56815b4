"""A service that strangers might reach, and that would let them in, says so once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam.exposure import is_loopback
from tests.conftest import RedisServer, start_redis
from tests.faults.deployment import stub
from tests.integration.processes import mutual_tls, spawn

WARNING = "whoever reaches this address may call"
EVERYWHERE = "0.0.0.0"  # noqa: S104 (what this is about)
STARTED = {"gateway": "serving", "encoder_service": "encoder serves", "decoder_service": "decoder ready"}


@pytest.fixture(scope="module")
def redis_of_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for those that start only with one."""
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def said_at_start(module: str, folder: Path, redis: RedisServer, settings: dict[str, str]) -> str:
    """Start a service, wait until it serves, and stop it; return its log."""
    environment = {**stub(), "SAMOVAR_REDIS_URL": redis.url, **settings}
    process = spawn(["-m", module, "--port", "0"], folder, 0, environment)
    until = time.monotonic() + 90
    while f'"event": "{STARTED[module]}"' not in process.log.read_text():
        assert process.popen.poll() is None, process.log.read_text()
        assert time.monotonic() < until, process.log.read_text()
        time.sleep(0.05)
    process.stop()
    return process.log.read_text()


@pytest.mark.parametrize("module", STARTED)
def test_an_open_address_is_warned_of(module: str, tmp_path: Path, redis_of_services: RedisServer) -> None:
    """On another address than loopback, without keys, one line warns; on loopback, or with keys, none does."""
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    everywhere = {"SAMOVAR_HOST": EVERYWHERE}
    opened = said_at_start(module, tmp_path, redis_of_services, everywhere)
    (line,) = [line for line in opened.splitlines() if WARNING in line]
    assert '"level": "warning"' in line
    assert EVERYWHERE in line
    assert "api_keys_file" in line
    for settings in ({}, everywhere | {"SAMOVAR_API_KEYS_FILE": str(keys)}):
        assert WARNING not in said_at_start(module, tmp_path, redis_of_services, settings)


def test_callers_who_need_a_certificate_are_no_strangers(tmp_path: Path, redis_of_services: RedisServer) -> None:
    """A service that speaks mutual TLS warns of nothing."""
    settings = mutual_tls(tmp_path / "certificates")[1] | {"SAMOVAR_HOST": EVERYWHERE}
    assert WARNING not in said_at_start("encoder_service", tmp_path, redis_of_services, settings)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        (EVERYWHERE, False),
        ("::", False),
        ("10.0.0.1", False),
        ("no-such-host.invalid", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    """Addresses and names that lead to this machine alone are told from the others."""
    assert is_loopback(host) is loopback
