"""Many requests for one picture at once: one encode, or one refusal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient, segment_body
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment, deployment
from tests.faults.history import History, Request
from tests.faults.load import at_once, comes_true
from tests.faults.pictures import picture, point, undecodable

KIB = 2**10


@pytest.mark.parametrize("count", [pytest.param(40, id="quick"), pytest.param(200, marks=pytest.mark.faults)])
def test_f1_a_stampede_on_one_new_picture_encodes_it_once(standing: Deployment, report: Report, count: int) -> None:
    """However many gateways and encoders are asked for a new picture at once, it is encoded once, and all agree."""
    history, wanted = History(), picture(f"f1-{count}")

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            await at_once(count, lambda _: http.segment(wanted, number=7))

    asyncio.run(scenario())
    assert_right(history)
    encodes = standing.encodes(wanted.digest)
    report.row(
        "F1",
        injected=f"{count} segment calls at once, one new picture, 2 encoders, {len(standing.gateways)} gateways",
        counted="encodes; answers that are OK and identical",
        required=f"1; {count} of {count}",
        seen=f"{encodes}; {count - len(history.failed)} of {count}",
        held=encodes == 1 and not history.failed,
    )
    report.assert_held()


@pytest.mark.faults
def test_f2_no_stampede_of_large_bodies_fails_when_a_replica_dies(tmp_path: Path, report: Report) -> None:
    """Ten stampedes of 200 calls with bodies of 300 KiB to 5 MiB lose no request to the replica killed in each."""
    history, rounds, each = History(), 10, 200
    encodes: list[int] = []
    # All 200 bodies of 7 MB, in base64, are held at once; which is not what this is about.
    environment = {"SAMOVAR_BODIES_MAX_BYTES": str(2**31)}
    with deployment(tmp_path, gateways=3, environment=environment) as running:

        async def stampede(number: int) -> None:
            size = int(300 * KIB * (5 * 1024 / 300) ** (number / (rounds - 1)))
            wanted = picture(f"f2-{number}", size)
            body = segment_body(wanted, "", point(number))
            victim = [*running.encoders, *running.decoders][number % 4]
            async with HttpClient(history, running.urls, patience_s=180) as http:
                calls = asyncio.create_task(at_once(each, lambda _: http.segment(wanted, body=body, number=number)))
                asked = len(history)
                await comes_true(
                    lambda: sum(map(_answered, history.requests[asked:])) >= number * each // 20, within_s=120
                )
                await asyncio.sleep(0.3)
                victim.kill()
                await calls
            await asyncio.to_thread(running.repair)
            encodes.append(running.encodes(wanted.digest))

        for number in range(rounds):
            asyncio.run(stampede(number))
    assert_right(history)
    report.row(
        "F2",
        injected=f"{rounds} stampedes of {each} calls, bodies of 0.4 to 6.7 MB, in each a replica SIGKILLed mid-call",
        counted="failed requests; encodes of a picture",
        required=f"0 of {rounds * each}; at most 2",
        seen=f"{len(history.failed)} of {len(history)}{history.told_failures()}; at most {max(encodes)}",
        held=not history.failed and max(encodes) <= 2 and len(history) == rounds * each,
    )
    report.assert_held()


@pytest.mark.parametrize("count", [pytest.param(20, id="quick"), pytest.param(100, marks=pytest.mark.faults)])
def test_f21_copies_of_an_undecodable_picture_are_refused_and_not_all_decoded(
    standing: Deployment, report: Report, count: int
) -> None:
    """A broken picture sent many times at once is the client's mistake each time, found out a few times."""
    history, broken = History(), undecodable(f"f21-{count}")

    async def scenario() -> None:
        async with HttpClient(history, standing.urls) as http:
            await at_once(count, lambda _: http.segment(broken))

    asyncio.run(scenario())
    decodes = standing.count_events("encoders", "image refused", image_digest=broken.digest)
    refused = sum(request.answer.code == "400" for request in history)
    report.row(
        "F21",
        injected=f"{count} copies of one undecodable picture at once",
        counted="answers 400 IMAGE_UNDECODABLE; decodes",
        required=f"{count} of {count}; at most 3",
        seen=f"{refused} of {count}{history.told_failures()}; {decodes}",
        held=history.statuses() == {"IMAGE_UNDECODABLE": count} and refused == count and 1 <= decodes <= 3,
    )
    report.assert_held()


def _answered(request: Request) -> bool:
    return bool(request.answers)
