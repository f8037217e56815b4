"""Recorded pairs of request and answer, a file for each part of the contract.

An entry: `behaviour` says what it shows; `before` lists requests that are sent first; `send` is the request and `get`
what its answer must hold. `"$picture"` stands for a picture of 64 x 48 pixels as the `image` of a body, `"$base64"` and
`"$digest"` anywhere in a text for its base64 and its SHA-256, `"$deep"` for JSON that is nested too deep; a `text` is
sent as it stands. In `get.json` an object must hold at least what is written, `"*"` matches anything, and text that
starts with `~` must be contained.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.stack import Stack, as_image, picture

FOLDER = Path(__file__).parent / "recorded"
PICTURE = picture()
DIGEST = hashlib.sha256(PICTURE).hexdigest()


def entries() -> list[Any]:
    """Return every recorded pair under a readable name."""
    found = []
    for file in sorted(FOLDER.glob("*.json")):
        for entry in json.loads(file.read_text()):
            found.append(pytest.param(entry, id=f"{file.stem}: {entry['behaviour']}"))
    return found


@pytest.mark.parametrize("entry", entries())
def test_the_recorded_answer_is_given(stack: Stack, entry: dict[str, Any]) -> None:
    """Every recorded request gets its recorded answer."""
    stack.encoder.pages["https://pictures.example/a.png"] = PICTURE
    for request in entry.get("before", []):
        assert send(stack, request).status_code < 300
    answer = send(stack, entry["send"])
    expected = entry["get"]
    assert answer.status_code == expected["status"], answer.text[:500]
    for name, value in expand(expected.get("headers", {})).items():
        assert_holds(answer.headers.get(name), value, name)
    if "json" in expected:
        assert_holds(answer.json(), expand(expected["json"]), "answer")
    for name in expected.get("absent", []):
        assert name not in answer.json()
    assert answer.headers["x-request-id"]
    assert "total;dur=" in answer.headers["server-timing"]


def send(stack: Stack, request: dict[str, Any]) -> Any:
    """Send a recorded request."""
    path = request["path"].replace("$digest", DIGEST)
    headers = request.get("headers", {})
    if "text" in request:
        headers = {"content-type": "application/json", **headers}
        return stack.http.request(request["method"], path, content=expand(request["text"]).encode(), headers=headers)
    body = expand(request.get("json"))
    return stack.http.request(request["method"], path, json=body, headers=headers)


def expand(value: Any) -> Any:
    """Fill in what a recorded value stands for."""
    if value == "$picture":
        return as_image(PICTURE)
    if value == "$deep":
        return "[" * 3000 + "]" * 3000
    if isinstance(value, str):
        return value.replace("$digest", DIGEST).replace("$base64", as_image(PICTURE)["value"])
    if isinstance(value, dict):
        return {key: expand(item) for key, item in value.items()}
    return [expand(item) for item in value] if isinstance(value, list) else value


def assert_holds(found: Any, expected: Any, place: str) -> None:
    """Check that an answer holds at least what is expected of it."""
    if expected == "*":
        assert found is not None, place
    elif isinstance(expected, str) and expected.startswith("~"):
        assert expected[1:] in str(found), f"{place}: {found}"
    elif isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{place} has no {key}: {str(found)[:300]}"
            assert_holds(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected), f"{place}: {str(found)[:300]}"
        for index, value in enumerate(expected):
            assert_holds(found[index], value, f"{place}[{index}]")
    else:
        assert found == expected, f"{place}: {found!r}"
