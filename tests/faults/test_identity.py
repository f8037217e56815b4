"""An id means what it was last given, to its tenant alone, whatever else happens at once."""

from __future__ import annotations

import asyncio
import base64
import json

import httpx2
import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment
from tests.faults.history import History
from tests.faults.load import at_once
from tests.faults.pictures import Picture, picture

FULL = pytest.mark.faults


@pytest.mark.parametrize("rounds", [pytest.param(10, id="quick"), pytest.param(100, marks=FULL)])
def test_f13_one_id_for_two_pictures_is_never_answered_with_the_other(
    standing: Deployment, report: Report, rounds: int
) -> None:
    """An id that two pictures share, in turn and at once, gives the mask of the picture sent, or of one bound to it."""
    history, pair = History(), (picture("f13-a"), picture("f13-b"))

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            for number in range(rounds):
                await http.segment(pair[number % 2], "in-turn")
                await http.segment(None, "in-turn")
            # Bound to something, before anybody asks by name.
            await http.embed(pair[0], "at-once")
            for _ in range(rounds // 5):
                await at_once(8, lambda number: http.segment(pair[number % 2] if number < 6 else None, "at-once"))
                await http.embed(pair[0], "at-once")
                await http.segment(None, "at-once")

    asyncio.run(scenario())
    assert_right(history)
    report.row(
        "F13",
        injected="one id for two pictures: in turn, at once, by id alone",
        counted="wrong masks; failed requests",
        required=f"0; 0 of {len(history)}",
        seen=f"0; {len(history.failed)}{history.told_failures()}",
        held=not history.failed,
    )
    report.assert_held()


@FULL
def test_f13_a_remembered_mask_is_never_another_pictures(standing: Deployment, report: Report) -> None:
    """When an id moves to a picture without a remembered mask, refining by id is refused rather than mixed up."""
    first, second = picture("f13-c"), picture("f13-d")
    refine = {"image_id": "refined", "point_coords": [[3, 3]], "point_labels": [1], "has_mask_input": True}
    with httpx2.Client(base_url=standing.urls[0], timeout=30) as http:
        _post(http, "/sam/segment_image", {**_sent(first), **refine, "has_mask_input": False}).raise_for_status()
        own = _post(http, "/sam/segment_image", refine)
        moved = _post(http, "/sam/embed_image", {**_sent(second), "image_id": "refined", "format": "none"})
        other = _post(http, "/sam/segment_image", refine)
    seen = (own.status_code, moved.json().get("image_id_moved"), other.status_code)
    report.row(
        "F13",
        injected="an id with a remembered mask moves to a picture that has none",
        counted="refining by id before; whether the answer says that it moved; refining after",
        required="200; True; 400",
        seen="; ".join(map(str, seen)),
        held=seen == (200, True, 400),
    )
    report.assert_held()


@pytest.mark.parametrize("rounds", [pytest.param(6, id="quick"), pytest.param(100, marks=FULL)])
def test_f14_tenants_with_one_id_never_see_each_other(standing: Deployment, report: Report, rounds: int) -> None:
    """Two tenants who use one id, also for one picture, each get their own, and nothing of the other's before."""
    history = History()
    shared = picture("f14-shared")
    tenants = {"tenant-a": picture("f14-a"), "tenant-b": picture("f14-b")}
    unseen: list[str] = []

    async def tenant(key: str, own: Picture) -> None:
        async with HttpClient(history, standing.urls, api_key=key) as http:
            for number in range(rounds):
                await http.segment(own if number % 3 else shared, "same")
                await http.segment(None, "same")

    async def scenario() -> None:
        async with HttpClient(history, standing.urls, api_key="tenant-a") as http:
            await http.segment(tenants["tenant-a"], "same")
            await http.segment(shared)
        async with HttpClient(history, standing.urls, api_key="tenant-b") as http:
            for name in ("same", shared.digest, tenants["tenant-a"].digest):
                unseen.append((await http.segment(None, name)).answer.code)
        await asyncio.gather(*(tenant(key, own) for key, own in tenants.items()))

    asyncio.run(scenario())
    assert_right(history)
    failed = len(history.failed) - len(unseen)
    report.row(
        "F14",
        injected="two tenants, one id, one picture in common",
        counted="the other's id and digests by name; wrong masks; failed requests",
        required="404 each; 0; 0",
        seen=f"{', '.join(unseen)}; 0; {failed} of {len(history)}",
        held=unseen == ["404"] * 3 and failed == 0,
    )
    report.assert_held()


def _sent(sent: Picture) -> dict[str, object]:
    return {"image": {"type": "base64", "value": base64.b64encode(sent.content).decode()}}


def _post(http: httpx2.Client, path: str, fields: dict[str, object]) -> httpx2.Response:
    return http.post(path, content=json.dumps(fields), headers={"Content-Type": "application/json"})
