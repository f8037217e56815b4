"""Health, metrics, cross-origin rules, and what the process loads and leaves behind."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from gateway.clients import Services
from gateway.service import gateway_running, listen
from gateway.settings import GatewayOptions
from sam.errors import SamovarError, StartupError, StoreUnavailable, leaves
from tests.conftest import free_port
from tests.gateway.stack import PATIENCE_S, Stack, as_image, picture, running_stack

ROOT = Path(__file__).resolve().parent.parent.parent
SEGMENT = "/sam/segment_image"
BODY = {"image_id": "a", "point_coords": [[20, 10]]}


def test_the_gateway_loads_no_heavy_library() -> None:
    """Importing the application loads neither torch nor what only the other services need."""
    code = (
        "import sys, gateway.app, gateway.service, gateway.__main__\n"
        "heavy = {'torch', 'torchvision', 'redis', 'segment_anything', 'aiohttp', 'PIL', 'pycocotools'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("encoder", "decoder", "status", "missing"),
    [(True, True, 200, None), (False, True, 200, ["encoder"]), (True, False, 503, ["decoder"])],
)
def test_readiness_follows_the_decoder(
    stack: Stack, encoder: bool, decoder: bool, status: int, missing: list[str] | None
) -> None:
    """Without an encoder cached pictures still segment, so the gateway stays ready and says what is missing."""
    stack.serving(encoder=encoder, decoder=decoder)
    try:
        until = time.monotonic() + PATIENCE_S
        answer = stack.http.get("/readiness")
        # A channel learns of a change of health by itself, a moment later.
        while answer.json().get("missing") != missing and time.monotonic() < until:
            answer = stack.http.get("/readiness")
        assert (answer.status_code, answer.json().get("missing")) == (status, missing)
    finally:
        stack.serving()


def test_a_lost_store_does_not_make_the_gateway_unready(stack: Stack) -> None:
    """Readiness asks for the services' health alone."""
    stack.serving()
    stack.store.reachable = False
    assert stack.http.post(SEGMENT, json=BODY).json()["reason"] == StoreUnavailable.reason
    assert stack.http.get("/readiness").json() == {"status": "ready"}


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.reason)
def test_every_error_of_the_services_keeps_its_reason_and_status(stack: Stack, kind: type[SamovarError]) -> None:
    """Whatever a service raises arrives with the status, reason, message and Retry-After of the table."""
    stack.decoder.error = kind("What is wrong and what to do.", retry_after_s=kind.default_retry_after_s)
    answer = stack.http.post(SEGMENT, json=BODY)
    assert (answer.status_code, answer.json()["reason"]) == (kind.http_status, kind.reason)
    assert answer.json()["message"] == "What is wrong and what to do."
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (kind.default_retry_after_s is not None)


def test_a_field_at_fault_is_named(stack: Stack) -> None:
    """A service's field violation and metadata arrive as `field` and `metadata`."""
    answer = stack.http.post(SEGMENT, json={**BODY, "image": as_image(picture()), "sam_version_id": "vit_l"}).json()
    assert (answer["field"], answer["metadata"]) == ("sam_version_id", {"served": "vit_b"})


def test_a_fault_of_ours_tells_nothing_but_its_request_id(stack: Stack) -> None:
    """An exception that is none of the tree gets 500 INTERNAL without its text."""
    stack.decoder.error = RuntimeError("0x7f0000000000")
    answer = stack.http.post(SEGMENT, json={**BODY, "image": as_image(picture())})
    assert (answer.status_code, answer.json()["reason"]) == (500, "INTERNAL")
    assert "0x7f" not in answer.text


def test_metrics_count_routes_and_not_paths(stack: Stack) -> None:
    """A request is counted under the route as declared, so that image_ids never become labels."""
    stack.http.get("/sam/embeddings/some-image-id")
    stack.http.get("/no/such/route")
    text = stack.http.get("/metrics").text
    assert (
        'samovar_gateway_requests_total{method="GET",route="/sam/embeddings/{image_id:anything}",status="404"}' in text
    )
    assert 'route="none"' in text
    assert "some-image-id" not in text


def test_metrics_count_where_embeddings_came_from(stack: Stack) -> None:
    """Hits and misses are counted."""
    stack.http.post(SEGMENT, json={**BODY, "image": as_image(picture())})
    assert 'samovar_gateway_embeddings_total{cache_status="miss"}' in stack.http.get("/metrics").text


def test_server_timing_tells_where_the_time_went(stack: Stack) -> None:
    """The stages of all calls are told in their order, after the body's own way here and before the total."""

    def stages(answer: httpx2.Response) -> list[str]:
        entries = [entry.partition(";dur=") for entry in answer.headers["server-timing"].split(", ")]
        assert all(float(milliseconds) >= 0 for _, _, milliseconds in entries)
        return [stage for stage, _, _ in entries]

    first = stack.http.post(SEGMENT, json={**BODY, "image": as_image(picture())})
    assert stages(first) == ["receive", "queue", "encode", "decode", "render", "total"]
    assert stages(stack.http.post(SEGMENT, json=BODY)) == ["receive", "queue", "decode", "render", "total"]
    for suffix in ("", ".npy"):
        found = stack.http.get(f"/sam/embeddings/a{suffix}")
        assert stages(found) == ["store", "render", "total"]
        assert "store;dur=3.0" in found.headers["server-timing"]
    assert stages(stack.http.get("/healthz")) == ["total"]


def test_metrics_count_where_the_time_went(stack: Stack) -> None:
    """The stages of Server-Timing are added up."""

    def seconds(stage: str) -> float:
        text = stack.http.get("/metrics").text
        found = re.search(rf'samovar_gateway_stage_seconds_total{{stage="{stage}"}} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = seconds("decode")
    stack.http.post(SEGMENT, json={**BODY, "image": as_image(picture())})
    # What the fake decoder says that it took.
    assert seconds("decode") == pytest.approx(before + 0.01)
    assert seconds("receive") > 0


def test_pages_of_other_origins_may_not_read_by_default(stack: Stack) -> None:
    """Without configured origins there is no header that lets a page read an answer."""
    answer = stack.http.get("/healthz", headers={"Origin": "https://page.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_configured_origins_may_read() -> None:
    """A configured origin may read answers and their headers, preflight included; another one may not."""
    with running_stack(cors_origins="https://page.example, https://other.example") as stack:
        ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        preflight = stack.http.options(SEGMENT, headers={**ask, "Access-Control-Request-Headers": "content-type"})
        assert preflight.status_code == 200
        answer = stack.http.get("/healthz", headers={"Origin": "https://page.example"})
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "X-Cache" in answer.headers["access-control-expose-headers"]
        foreign = stack.http.get("/healthz", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


def test_a_port_in_use_is_one_clear_line() -> None:
    """A second gateway on one port refuses to start and says what to do."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"Cannot listen on 127\.0\.0\.1:{port}: the port is in use"):
            asyncio.run(_start(GatewayOptions(port=port)))


def test_a_host_that_is_not_ours_is_one_clear_line() -> None:
    """An address of another machine is refused at start."""
    with pytest.raises(StartupError, match="--host"):
        asyncio.run(_start(GatewayOptions(host="192.0.2.1", port=0)))


def test_answers_are_not_held_back_by_the_kernel() -> None:
    """What is accepted sends small packets at once: asyncio sees to it for sockets that name their protocol."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto != 0


def test_a_missing_key_file_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    """A configured key file that cannot be read never lets everyone in."""
    with pytest.raises(StartupError, match="cannot be read"):
        asyncio.run(_start(GatewayOptions(port=0, api_keys_file=tmp_path / "none")))


def test_draining_turns_readiness_off_and_finishes_accepted_requests() -> None:
    """While it stops, /readiness is 503 and a request under way is answered; afterwards nothing listens."""

    async def stop_while_busy() -> tuple[int, int]:
        options = GatewayOptions(port=0, drain_s=1)
        port = free_port()
        running = gateway_running(options, encoder_target=f"127.0.0.1:{port}", decoder_target=f"127.0.0.1:{port}")
        bound = await running.__aenter__()
        busy = await _slow_request(bound)
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", bound)
        writer.write(b"GET /readiness HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        ready = int((await reader.readline()).split()[1])
        writer.close()
        busy[1].write(b"{}")
        answered = int((await busy[0].readline()).split()[1])
        busy[1].close()
        await stopping
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection("127.0.0.1", bound)
        return ready, answered

    ready, answered = asyncio.run(asyncio.wait_for(stop_while_busy(), PATIENCE_S))
    assert (ready, answered) == (503, 422)


def test_nothing_runs_on_when_it_has_stopped() -> None:
    """A stopped gateway leaves no task behind, and the loop's thread ends."""
    before = threading.active_count()

    async def run() -> int:
        await _start(GatewayOptions(port=0, drain_s=0))
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
    assert threading.active_count() <= before + 1


def test_services_are_asked_by_their_full_names() -> None:
    """The names in health checks are those of the contract."""

    async def names() -> list[str]:
        services = Services(encoder_target="127.0.0.1:1", decoder_target="127.0.0.1:1")
        missing = [await services.encoder.is_serving(), await services.decoder.is_serving()]
        await services.close()
        return [str(serving) for serving in missing]

    assert asyncio.run(names()) == ["False", "False"]


async def _start(options: GatewayOptions) -> None:
    async with gateway_running(options, encoder_target="127.0.0.1:1", decoder_target="127.0.0.1:1"):
        pass


async def _slow_request(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /sam/segment_image HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    )
    await writer.drain()
    return reader, writer
