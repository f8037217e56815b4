"""What still works when a part is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.conftest import RedisServer, free_port, start_redis
from tests.integration.processes import RANDOM_MODEL, Stack, service, spawn, stack
from tests.integration.test_split_roles import CLICK, picture, segment


@pytest.fixture
def running(tmp_path: Path, own_redis: RedisServer) -> Iterator[Stack]:
    """One replica of each service."""
    with stack(tmp_path, own_redis.url, encoders=1, decoders=1, environment=RANDOM_MODEL) as processes:
        yield processes


def test_redis_and_the_encoder_may_be_lost(running: Stack, own_redis: RedisServer, tmp_path: Path) -> None:
    """Without an encoder what is stored still segments; without Redis what is sent does, and ids are 503, not 404."""
    with httpx2.Client(base_url=running.gateway.url, timeout=120) as http:
        expected = segment(http, image=picture(), image_id="kept").raise_for_status().json()["masks"]

        running.encoders[0].stop()
        assert segment(http, image_id="kept").raise_for_status().json()["masks"] == expected
        assert segment(http, image=picture(), image_id="kept").raise_for_status().json()["masks"] == expected
        lost = segment(http, image=picture("flower"))
        assert (lost.status_code, lost.json()["reason"]) == (503, "ENCODER_UNAVAILABLE")
        assert int(lost.headers["Retry-After"]) >= 1

        own_redis.stop()
        targets = {"SAMOVAR_REDIS_URL": own_redis.url, **RANDOM_MODEL}
        started = time.monotonic()
        refused = spawn(["-m", "encoder_service", "--port", str(free_port())], tmp_path, 0, targets)
        assert refused.popen.wait(30) == 1
        assert time.monotonic() - started < 20
        assert "cannot be" in refused.log.read_text().splitlines()[-1]

        by_id = segment(http, image_id="kept")
        assert (by_id.status_code, by_id.json()["reason"]) == (503, "STORE_UNAVAILABLE")
        # This decoder still has the picture's embedding, under its content.
        assert segment(http, image=picture(), image_id="kept").raise_for_status().json()["masks"] == expected
        assert httpx2.get(f"{running.gateway.url}/readiness").status_code == 200


def test_without_redis_the_embedding_travels_along(running: Stack, own_redis: RedisServer) -> None:
    """With the store gone, a request that carries its picture is answered, with the mask that the store would give."""
    with httpx2.Client(base_url=running.gateway.url, timeout=120) as http:
        expected = segment(http, image=picture("flower")).raise_for_status().json()["masks"]
        own_redis.stop()
        bypass = segment(http, image=picture("china")).raise_for_status()
        assert bypass.headers["X-Cache"] == "bypass"
        start_again = start_redis(own_redis.folder, port=own_redis.port)
        try:
            until = time.monotonic() + 60
            while (answer := segment(http, image=picture("china"))).headers["X-Cache"] == "bypass":
                assert time.monotonic() < until
            assert answer.json()["masks"] == bypass.json()["masks"]
            assert segment(http, image=picture("flower")).raise_for_status().json()["masks"] == expected
        finally:
            start_again.stop()


def test_a_split_role_refuses_to_start_without_a_shared_store(tmp_path: Path) -> None:
    """A service of its own needs a store that others see, and says so in one line."""
    for module in ("encoder_service", "decoder_service"):
        process = spawn(["-m", module, "--port", str(free_port())], tmp_path, 0, RANDOM_MODEL)
        assert process.popen.wait(60) == 1
        assert "--redis-url" in process.log.read_text().splitlines()[-1]


def test_only_holders_of_a_key_may_call(tmp_path: Path, own_redis: RedisServer) -> None:
    """With keys configured, HTTP and gRPC calls without one are refused, and no key is written to a log."""
    keys = tmp_path / "keys"
    keys.write_text("first-secret\nsecond-secret\n")
    environment = {**RANDOM_MODEL, "SAMOVAR_API_KEYS_FILE": str(keys)}
    with stack(tmp_path, own_redis.url, encoders=1, decoders=1, environment=environment) as processes:
        with httpx2.Client(base_url=processes.gateway.url, timeout=120) as http:
            body = {**CLICK, "image_id": "x"}
            assert http.post("/sam/segment_image", json=body).status_code == 401
            assert http.post("/sam/segment_image?api_key=wrong", json=body).status_code == 401
            assert http.post("/sam/segment_image?api_key=first-secret", json=body).status_code == 404
            bearer = {"Authorization": "Bearer second-secret"}
            assert http.post("/sam/segment_image", json=body, headers=bearer).status_code == 404
            assert http.post("/sam/segment_image", json={**body, "api_key": "first-secret"}).status_code == 404
        logs = "".join(process.log.read_text() for process in [processes.gateway, *processes.decoders])
    assert "secret" not in logs


def test_the_all_in_one_serves_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    """`samovar serve` answers both routes on one port, refuses a taken port in one line, and Ctrl-C ends it cleanly."""
    with service("samovar", tmp_path, RANDOM_MODEL, arguments=("serve",)) as process:
        with httpx2.Client(base_url=process.url, timeout=120) as http:
            assert http.get("/").status_code == http.get("/docs").status_code == 200
            answer = segment(http, image=picture(), image_id="x").raise_for_status()
            assert segment(http, image_id="x").json()["masks"] == answer.json()["masks"]
        taken = spawn(["-m", "samovar", "serve", "--port", str(process.port)], tmp_path, 0, RANDOM_MODEL)
        assert taken.popen.wait(60) == 1
        assert "in use" in taken.log.read_text().splitlines()[-1]
        assert process.stop(number=2) == 0
        assert "Traceback" not in process.log.read_text()
