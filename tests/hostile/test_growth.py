"""Hostile input leaves nothing behind."""

from __future__ import annotations

import base64

import httpx2
import pytest

from tests.faults.deployment import Deployment
from tests.faults.replica import Usage
from tests.hostile.conftest import Begin
from tests.hostile.corpus import all_samples
from tests.hostile.test_bodies import CASES
from tests.hostile.test_urls import WAYS

ROUNDS = 5

MOST_GROWTH_MIB = 48.0
"""Of one process over all rounds but the first two, which fill caches and the allocator's pools."""


@pytest.mark.hostile
def test_no_process_grows(services: Deployment, tally: Begin) -> None:
    """Round after round of the same hostile input leaves memory, files and threads as they are."""
    counts = tally(f"pictures, bodies and URLs as above, {ROUNDS} rounds of all")
    # Not the largest pictures: when the allocator gives their hundreds of MiB back is its own business.
    samples = [base64.b64encode(one.data).decode() for one in all_samples() if "4000x4000" not in one.name]
    settled: dict[str, Usage] = {}
    with httpx2.Client(base_url=services.urls[0], timeout=60) as http:
        for number in range(ROUNDS):
            for value in samples:
                counts.count_status(_embed(http, "base64", value))
            for value in WAYS:
                counts.count_status(_embed(http, "url", value))
            for _, content in CASES:
                answered = http.post(
                    "/sam/segment_image", content=content, headers={"content-type": "application/json"}
                )
                counts.count_status(answered.status_code)
            if number == 1:
                settled = {replica.module: replica.usage() for replica in services.replicas}
    grown = []
    for replica in services.replicas:
        before, after = settled[replica.module], replica.usage()
        grown.append(f"{replica.module} by {after.rss_mib - before.rss_mib:.0f} MiB")
        assert after.rss_mib - before.rss_mib < MOST_GROWTH_MIB, grown
        assert after.fds - before.fds < 10
        assert after.threads - before.threads < 10
    counts.remark = f"from the second round to the last grew {', '.join(grown)}"


def _embed(http: httpx2.Client, kind: str, value: str) -> int:
    body = {"image": {"type": kind, "value": value}, "format": "none"}
    return http.post("/sam/embed_image", json=body).status_code
