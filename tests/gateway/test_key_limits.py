"""The limits of API keys at the gateway."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.gateway.stack import PATIENCE_S, Stack, as_image, picture, running_stack

SEGMENT = "/sam/segment_image"
LINES = "slow rate=1/min name=sue\nnarrow concurrency=1\nfree\n"


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway with three keys: one that may ask seldom, one that may ask one thing at a time, one without limits."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(LINES)
    with running_stack(api_keys_file=keys) as stack:
        yield stack


def ask(stack: Stack, key: str, shade: int = 0) -> httpx2.Response:
    """Click on a picture."""
    body = {"image": as_image(picture(shade=shade)), "point_coords": [[20, 10]], "api_key": key}
    return stack.http.post(SEGMENT, json=body)


@pytest.mark.usefixtures("logs_on_stderr")
def test_a_rate_is_answered_with_429(limited: Stack, capfd: pytest.CaptureFixture[str]) -> None:
    """Over its rate, a key gets 429 OVERLOADED with the time to wait; no service is asked, and others go on."""
    limited.reset()
    assert ask(limited, "slow").status_code == 200
    calls = len(limited.decoder.calls)
    refused = ask(limited, "slow")
    assert (refused.status_code, refused.json()["reason"]) == (429, "OVERLOADED")
    assert refused.json()["metadata"] == {"limit": "key_rate"}
    assert 50 <= int(refused.headers["Retry-After"]) <= 60
    assert len(limited.decoder.calls) == calls
    assert all(ask(limited, "free").status_code == 200 for _ in range(5))
    # Who sends no key that is known is turned away, and counts for nobody.
    assert ask(limited, "unknown").status_code == 401
    assert "sue" in "".join(capfd.readouterr())


def test_what_is_not_answered_about_counts_as_well(limited: Stack) -> None:
    """A look at the models is a request as any other; probes are none."""
    asked = [limited.http.get("/model/registry?api_key=slow").status_code for _ in range(2)]
    assert asked[1] == 429
    assert limited.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "extra"), [(SEGMENT, {"point_coords": [[20, 10]]}), ("/sam/segment_everything", {"stream": True})]
)
def test_requests_at_once_are_bounded_until_their_last_byte(limited: Stack, path: str, extra: dict[str, Any]) -> None:
    """While one request is under way, or its stream, the next is refused; when its client has left, it is let in."""
    limited.reset()
    embed = {"image": as_image(picture()), "image_id": "a", "format": "none", "api_key": "narrow"}
    assert limited.http.post("/sam/embed_image", json=embed).status_code == 200
    limited.decoder.held = True
    body = json.dumps({"image_id": "a", "api_key": "narrow", **extra}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", limited.port)) as connection:
        connection.sendall(head.encode() + body)
        limited.wait(limited.decoder.entered)
        refused = limited.http.get("/model/registry?api_key=narrow")
        assert (refused.status_code, refused.json()["metadata"]) == (429, {"limit": "key_concurrency"})
        assert int(refused.headers["Retry-After"]) >= 1
        assert limited.http.get("/model/registry?api_key=free").status_code == 200
    limited.wait(limited.decoder.cancelled)
    until = time.monotonic() + PATIENCE_S
    while limited.http.get("/model/registry?api_key=narrow").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.02)
