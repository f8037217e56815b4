"""A real Prometheus in front of real services: everyone is found, every query answers, and what breaks is told."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from tests.faults.deployment import Deployment, deployment
from tests.faults.replica import Replica, wait_until
from tests.gateway.stack import as_image, picture
from tests.operate.prometheus import Prometheus, prometheus
from tests.operate.promtool import find
from tests.operate.watching import queries

pytestmark = [
    pytest.mark.operate,
    pytest.mark.skipif(find("prometheus") is None, reason="prometheus is not installed; make operate gets it"),
]

WITHIN_S = 60.0

QUIET = {
    # These tell what goes wrong, and here nothing does.
    "Errors by reason": "> 0",
    "Refused as overload": "> 0",
    "What goes wrong": "",
    # Nothing is downloaded here, and no process has a store of its own.
    "How long they take, p95": "fetch",
    "Store in the process": "",
}
"""Panels that may be empty while all is well: of their queries, those with this text."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A gateway, an encoder and two decoders over one Redis, each with a port for its metrics."""
    folder = tmp_path_factory.mktemp("services")
    with deployment(folder, encoders=1, decoders=2, environment=METRICS) as running:
        yield running


METRICS = {
    "SAMOVAR_METRICS_PORT": "0",
    "SAMOVAR_CHECKPOINT": "stub:1?encode_s=0.02&decode_s=0.002",
    "SAMOVAR_LOG_FORMAT": "json",
}


@pytest.fixture(scope="module")
def watching(services: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, which has scraped them all while people clicked."""
    tiers = {"gateway": services.gateways, "encoder": services.encoders, "decoder": services.decoders}
    targets = {job: [metrics_target(replica) for replica in tier] for job, tier in tiers.items()}
    with prometheus(tmp_path_factory.mktemp("prometheus"), targets) as running, clicking(services.urls[0]):
        wait_until(
            lambda: set(itertools.chain(*running.targets().values())) == {"up"}, within_s=WITHIN_S, what="scraped"
        )
        clicks = 'sum(increase(grpc_server_handled_total{grpc_method="SegmentImage", grpc_code="OK"}[1m]))'
        wait_until(lambda: any(value > 20 for value in values(running, clicks)), within_s=WITHIN_S, what="clicks")
        yield running


def metrics_target(replica: Replica) -> str:
    """Return where a replica tells what it counts, by its own log."""
    url = str(replica.events("metrics")[-1]["url"])
    return url.removeprefix("http://").removesuffix("/metrics")


def values(running: Prometheus, expression: str) -> list[float]:
    """Return the values of an expression."""
    return [float(series["value"][1]) for series in running.query(expression)]


@contextmanager
def clicking(url: str) -> Iterator[None]:
    """Let somebody click on ever new pictures until the block is left, and on each of them twice."""
    ended = threading.Event()

    def click() -> None:
        with httpx2.Client(base_url=url, timeout=30, trust_env=False) as http:
            for number in itertools.count():
                body = {"image_id": f"picture-{number}", "point_coords": [[20, 10]]}
                for image in ({"image": as_image(picture(shade=number % 256))}, {}):
                    http.post("/sam/segment_image", json={**body, **image})
                if ended.wait(0.05):
                    return

    thread = threading.Thread(target=click)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_every_replica_is_scraped(watching: Prometheus) -> None:
    """All replicas are up, each under its service's job."""
    assert {job: len(health) for job, health in watching.targets().items()} == {
        "gateway": 1,
        "encoder": 1,
        "decoder": 2,
        "prometheus": 1,
    }


@pytest.mark.parametrize(("panel", "query"), list(queries()))
def test_every_query_of_the_dashboard_answers(watching: Prometheus, panel: str, query: str) -> None:
    """Each query finds something to show after a minute of clicks, but those that tell of trouble."""
    if panel in QUIET and QUIET[panel] in query:
        watching.query(query)
    else:
        wait_until(lambda: bool(watching.query(query)), within_s=WITHIN_S, what=query)


def test_all_is_well_while_it_is(watching: Prometheus) -> None:
    """Under a little load no alert fires."""
    assert watching.firing() == set()


def test_what_breaks_is_told_and_is_over_when_it_is(watching: Prometheus, services: Deployment) -> None:
    """A lost Redis and a killed decoder are told as such within seconds, and no longer once they are back."""
    services.redis.stop()
    services.decoders[1].kill()
    wait_until(
        lambda: {"SamovarStoreLost", "SamovarReplicaDown", "SamovarErrors"} <= watching.firing(),
        within_s=WITHIN_S,
        what="alerts",
    )
    assert "SamovarServiceGone" not in watching.firing()
    services.restart_redis()
    wait_until(lambda: "SamovarStoreLost" not in watching.firing(), within_s=WITHIN_S, what="the store is back")
