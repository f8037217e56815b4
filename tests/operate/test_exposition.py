"""What running services tell Prometheus: everything that is asked for, and no more than a bounded number of series."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import free_port
from tests.docs.test_operating_page import explained_bounds
from tests.faults.deployment import stub
from tests.faults.replica import wait_until
from tests.gateway.stack import as_image, picture
from tests.integration.processes import START_S, Process, service, spawned
from tests.operate.promtool import ROOT, needs_promtool, promtool
from tests.operate.watching import alerts, metrics_in, queries

SEGMENT = "/sam/segment_image"
CLICK = {"point_coords": [[20, 10]]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """All services in one process."""
    with service("samovar", tmp_path_factory.mktemp("server"), stub(encode_s=0), arguments=("serve",)) as process:
        yield process


def click(http: httpx2.Client, name: str, shade: int) -> None:
    """Do what users do, well and badly, with a picture of one's own."""
    image = as_image(picture(shade=shade))
    key = {"Authorization": f"Bearer key-of-{name}"}
    http.post("/sam/embed_image", json={"image": image, "image_id": name, "format": "none"}, headers=key)
    for _ in range(2):
        answer = http.post(SEGMENT, json={**CLICK, "image_id": name}, headers=key)
        assert answer.status_code == 200, answer.text
    http.post("/sam/segment_everything", json={"image": image, "points_per_side": 2}).raise_for_status()
    http.get(f"/sam/embeddings/{name}.npy", headers=key).raise_for_status()
    # And what goes wrong: an unknown name, no picture, one nobody may fetch, no such route or method, no JSON.
    http.post(SEGMENT, json={**CLICK, "image_id": f"unknown-{name}"})
    http.post(SEGMENT, json={**CLICK, "image": as_image(f"no picture of {name}".encode())})
    http.post(SEGMENT, json={**CLICK, "image": {"type": "url", "value": f"https://127.0.0.1/{name}.png"}})
    http.get(f"/no/such/route/{name}")
    http.request("BREW", f"/{name}")
    http.post(SEGMENT, content=name)
    http.delete(f"/sam/embeddings/{name}", params={"purge": "true"}, headers=key)


def series_of(text: str) -> dict[str, float]:
    """Return the value of every series of an exposition."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture(scope="module")
def exposition(server: Process) -> str:
    """What the server tells after a click."""
    with server.http(timeout=30, trust_env=False) as http:
        click(http, "first-picture", 1)
        return http.get("/metrics").raise_for_status().text


@needs_promtool
def test_promtool_finds_nothing_to_say(exposition: str) -> None:
    """Names, units, types and help texts are as Prometheus' conventions ask for."""
    said = promtool("check", "metrics", text=exposition)
    assert not said.strip(), said


def test_everything_that_is_asked_for_is_told(exposition: str) -> None:
    """Each metric that the dashboard, an alert or the page names is one that the services tell."""
    told = {family.name for family in text_string_to_metric_families(exposition)}
    told |= {f"{name}_total" for name in told}
    wanted = {name for _, query in queries() for name in metrics_in(query)}
    wanted |= {name for rule in alerts() for name in metrics_in(rule["expr"])}
    page = (ROOT / "docs" / "operating.md").read_text()
    wanted |= {name for code in re.findall(r"`([^`]+)`", page) for name in metrics_in(code)}
    assert len(wanted) > 50
    assert wanted <= told, wanted - told


def test_the_dashboard_shows_everything_of_ours(exposition: str) -> None:
    """No metric of ours is told and never looked at."""
    ours = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(exposition)
        if family.name.startswith(("samovar_", "grpc_server_"))
    }
    shown = {name for _, query in queries() for name in metrics_in(query)}
    # Under way is the difference of the two; the dashboard shows that of the gateway.
    assert ours - shown == {"grpc_server_started_total"}


def test_every_bound_is_explained(exposition: str) -> None:
    """The page says of each bound what is full and what to do; those of keys have a section of their own."""
    assert explained_bounds() == set(re.findall(r'^samovar_refusals_total{bound="(\w+)"}', exposition, re.MULTILINE))


def test_a_click_moves_what_it_should(server: Process) -> None:
    """Where the time of one embed and two clicks went can be read off."""
    with server.http(timeout=30, trust_env=False) as http:
        click(http, "before", 2)
        before = series_of(http.get("/metrics").text)
        click(http, "after", 3)
        after = series_of(http.get("/metrics").text)
    grown = {series: value - before.get(series, 0) for series, value in after.items()}
    assert grown['samovar_encoder_embeddings_total{source="leader"}'] == 2  # The one with a key, and the grid's.
    assert grown["samovar_encoder_batch_images_sum"] == 2
    assert grown["samovar_encoder_prepare_seconds_count"] >= 2
    # The first click reads it from the store, the second has it ready; so does the grid, of another tenant.
    assert grown['samovar_decoder_images_total{tier="store"}'] == 2
    assert grown['samovar_decoder_images_total{tier="memory"}'] == 1
    assert grown["samovar_decoder_decode_seconds_count"] == 3
    assert grown['samovar_store_written_bytes_total{kind="embedding"}'] > 2 * 2**21
    assert grown['samovar_store_read_bytes_total{kind="embedding"}'] > 2 * 2**21
    assert grown['samovar_encoder_refused_images_total{reason="IMAGE_UNDECODABLE"}'] == 1
    assert grown['samovar_encoder_fetches_total{outcome="IMAGE_URL_REFUSED"}'] == 1
    assert grown['samovar_gateway_errors_total{reason="EMBEDDING_NOT_FOUND"}'] == 1
    assert grown["samovar_gateway_sent_bytes_total"] > 2**22
    assert grown["samovar_gateway_received_bytes_total"] > 0
    for stage in ("receive", "queue", "encode", "store", "decode", "render"):
        assert grown[f'samovar_gateway_stage_seconds_total{{stage="{stage}"}}'] > 0, stage
    under_way = [value for series, value in after.items() if series.startswith("samovar_places_taken")]
    # The scrape itself holds no place.
    assert len(under_way) >= 6
    assert not any(under_way)


def test_series_do_not_grow_with_users_pictures_or_paths(server: Process) -> None:
    """More users, pictures, names, keys and made-up routes add not one series, and are named in none."""
    with server.http(timeout=30, trust_env=False) as http:
        click(http, "somebody", 4)
        before = http.get("/metrics").text
        for number in range(4):
            click(http, f"somebody-else-{number}", 10 + number)
        text = http.get("/metrics").text
    assert kinds_of(text) == kinds_of(before)
    assert "somebody" not in text
    assert len(series_of(text)) < 1500


def kinds_of(text: str) -> set[str]:
    """Return the series of an exposition, but for leases: on a slow machine one may be renewed for the first time."""
    return {series for series in series_of(text) if 'kind="lease"' not in series}


def test_a_service_of_its_own_tells_on_a_port_of_its_own(tmp_path: Path) -> None:
    """With metrics_port a gateway tells what it counts there, too, and nothing that other services count is in it."""
    port, text = free_port(), ""

    def told() -> bool:
        nonlocal text
        try:
            text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).raise_for_status().text
        except httpx2.ConnectError:
            return False
        return True

    # Without a decoder it is not ready, but tells what it counts.
    with spawned("gateway", tmp_path, {"SAMOVAR_METRICS_PORT": str(port)}):
        wait_until(told, within_s=START_S, what="metrics")
    assert 'samovar_build_info{version="' in text
    assert "samovar_gateway_" in text
    assert not any(f"samovar_{other}_" in text for other in ("encoder", "decoder", "store"))
