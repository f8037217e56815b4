"""One log line for each request, in every tier, under one request id."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.headers import server_timing, stage_ms
from tests.gateway.stack import PATIENCE_S, Stack, as_image, picture, running_stack

CLICK = {"point_coords": [[20, 10]], "format": "rle"}


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    with capture_logs([structlog.contextvars.merge_contextvars]) as captured:
        yield captured


def ended(lines: list[Any], request_id: str) -> list[Any]:
    """Return the lines that tell of the end of a request and of the calls for it."""
    until = time.monotonic() + PATIENCE_S
    while True:
        found = [line for line in lines if line["event"] in ("request", "call") and line["request_id"] == request_id]
        # Written when the answer is out already.
        if found and found[-1]["event"] == "request":
            return found
        assert time.monotonic() < until
        time.sleep(0.01)


def test_each_tier_writes_one_line(stack: Stack, lines: list[Any]) -> None:
    """A segmented picture leaves a line for each call and one for the request, with codes, durations and stages."""
    body = {**CLICK, "image": as_image(picture(7)), "image_id": "logged"}
    stack.http.post("/sam/segment_image", json=body, headers={"X-Request-ID": "lines-1"}).raise_for_status()
    *calls, request = ended(lines, "lines-1")
    assert [(call["method"].rpartition("/")[2], call["code"], call["outcome"]) for call in calls] == [
        ("SegmentImage", "NOT_FOUND", "EMBEDDING_NOT_FOUND"),
        ("EmbedImage", "OK", "OK"),
        ("SegmentImage", "OK", "OK"),
    ]
    assert all(call["ms"] >= 0 for call in calls)
    assert "encode" in calls[1]["stage_ms"]
    assert (request["event"], request["status"], request["path"]) == ("request", 200, "/sam/segment_image")
    assert {"encode", "render"} <= request["stage_ms"].keys()
    assert request["ms"] >= request["stage_ms"]["render"]


def test_a_failed_request_says_why(stack: Stack, lines: list[Any]) -> None:
    """A line has the reason of the error that was answered with."""
    stack.http.post("/sam/segment_image", json={**CLICK, "image_id": "no"}, headers={"X-Request-ID": "lines-2"})
    stack.http.post("/sam/segment_image", json={"image_id": 1}, headers={"X-Request-ID": "lines-3"})
    stack.http.get("/nowhere", headers={"X-Request-ID": "lines-4"})
    assert [ended(lines, f"lines-{number}")[-1]["reason"] for number in (2, 3, 4)] == [
        "EMBEDDING_NOT_FOUND",
        "REQUEST_INVALID",
        "REQUEST_INVALID",
    ]


def test_probes_do_not_flood_the_log(stack: Stack, lines: list[Any]) -> None:
    """A probe that goes well is no news; one that fails is."""
    for path in ("/healthz", "/readiness", "/metrics"):
        stack.http.get(path).raise_for_status()
    stack.http.get("/info", headers={"X-Request-ID": "lines-5"}).raise_for_status()
    ended(lines, "lines-5")
    assert [line["path"] for line in lines if line["event"] == "request" and line["log_level"] != "debug"] == ["/info"]
    with running_stack() as unready:
        unready.serving(decoder=False)
        while unready.http.get("/readiness", headers={"X-Request-ID": "lines-6"}).status_code == 200:
            pass
        failed = ended(lines, "lines-6")[-1]
        while failed["status"] == 200:
            failed = ended(lines, "lines-6")[-1]
    assert (failed["path"], failed["status"], failed["log_level"]) == ("/readiness", 503, "info")


def test_the_stages_of_a_line_are_those_of_the_header() -> None:
    """What a browser is told by Server-Timing stands in the line as numbers."""
    assert stage_ms(server_timing({"queue": 0.00125, "decode": 1.5})) == {"queue": 1.2, "decode": 1500.0}
