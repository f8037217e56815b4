"""What the page does when the server is lost, forgets, or is overloaded."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Route, expect

from tests.conftest import free_port
from tests.demo.conftest import STUB
from tests.demo.demo_page import EMBED, SEGMENT, DemoPage, near, prompt_in
from tests.integration.processes import Process, spawn, wait_for_gateway


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[list[Process]]:
    """A server that may be killed and started again; all in the list are stopped at the end."""
    processes = [serve(tmp_path, free_port())]
    yield processes
    for process in processes:
        process.stop(signal.SIGKILL)


def serve(folder: Path, port: int) -> Process:
    """Start all of Samovar in one process and wait until it is ready."""
    process = spawn(["-m", "samovar", "serve", "--port", str(port)], folder, port, STUB)
    wait_for_gateway(process)
    return process


@pytest.mark.acceptance
def test_a_lost_server_is_told_and_found_again(
    browser: Browser, own_server: list[Process], square: Path, tmp_path: Path
) -> None:
    """While the server is away the page says so and keeps what is clicked; when it is back, all of it is answered.

    Nothing is left of the picture in the new process, so that the page sends it again by itself.
    """
    (server,) = own_server
    demo = DemoPage(browser.new_context(accept_downloads=True).new_page(), server.url).open().choose(square)
    demo.expected = re.compile("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_SOCKET_NOT_CONNECTED|404|503")
    demo.click(700, 300).wait("ready")
    server.stop(signal.SIGKILL)
    demo.press("n")
    demo.click(100, 900).wait("waiting")
    assert "The server does not answer." in demo.problem
    expect(demo.page.locator("#problem-wait")).to_have_text(re.compile(r"Trying again"))
    expect(demo.page.get_by_role("button", name="Try again")).to_be_visible()
    # The first mask is still there to be downloaded.
    assert len(demo.masks(tmp_path)) == 1
    own_server.append(serve(tmp_path, server.port))
    demo.wait("ready")
    expect(demo.page.locator("#problem")).to_be_hidden()
    assert near(prompt_in(demo.masks(tmp_path)[1]), (100, 900))
    assert len(demo.bodies(EMBED)) == 2
    assert all("image" not in body for body in demo.bodies(SEGMENT))
    demo.close()


@pytest.mark.acceptance
def test_a_server_that_is_away_at_first(
    browser: Browser, own_server: list[Process], square: Path, tmp_path: Path
) -> None:
    """A picture opened while the server is away is sent as soon as it is back."""
    (server,) = own_server
    demo = DemoPage(browser.new_context().new_page(), server.url).open()
    demo.expected = re.compile("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_SOCKET_NOT_CONNECTED|503")
    server.stop(signal.SIGKILL)
    with demo.page.expect_file_chooser() as chooser:
        demo.page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(square)
    demo.wait("waiting")
    demo.click(700, 300)
    own_server.append(serve(tmp_path, server.port))
    demo.wait("ready")
    assert "score 0.90" in demo.status
    demo.close()


@pytest.mark.acceptance
def test_a_server_that_hangs_is_a_lost_one(browser: Browser, own_server: list[Process], square: Path) -> None:
    """A server that takes a click and does not answer it is given up after a quarter of a minute, and asked again."""
    (server,) = own_server
    demo = DemoPage(browser.new_context().new_page(), server.url).open().choose(square)
    demo.expected = re.compile("ERR_")
    server.popen.send_signal(signal.SIGSTOP)
    try:
        demo.click(700, 300)
        demo.wait("segmenting")
        demo.wait("waiting")
        assert "The server does not answer." in demo.problem
    finally:
        server.popen.send_signal(signal.SIGCONT)
    demo.wait("ready")
    assert "score 0.90" in demo.status
    demo.close()


def test_a_forgotten_picture_is_sent_again(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """When the server no longer has the picture, the page sends it again and the click is answered, unasked."""
    demo.expected = re.compile("404")
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    image_id = demo.bodies(SEGMENT)[0]["image_id"]
    assert httpx2.delete(f"{demo.url}/sam/embeddings/{image_id}?purge=true").status_code == 204
    demo.click(100, 900).wait("ready")
    assert len(demo.bodies(EMBED)) == 2
    assert "score 0.90" in demo.status
    expect(demo.page.locator("#problem")).to_be_hidden()


@pytest.mark.acceptance
def test_without_a_store_clicks_take_the_picture_along(demo: DemoPage, square: Path) -> None:
    """Where the server can keep nothing, each click is answered with the picture in it."""
    demo.expected = re.compile("503")
    demo.choose(square)

    def no_store(route: Route) -> None:
        if "image" in json.loads(route.request.post_data or ""):
            route.continue_()
        else:
            body = {"message": "The store cannot be reached.", "reason": "STORE_UNAVAILABLE", "request_id": "1"}
            route.fulfill(status=503, json=body, headers={"Retry-After": "1"})

    demo.page.route(f"**{SEGMENT}", no_store)
    demo.click(700, 300).wait("ready")
    assert "score 0.90" in demo.status
    assert demo.bodies(SEGMENT)[-1]["image"]["type"] == "base64"


@pytest.mark.acceptance
def test_an_overloaded_server_is_asked_again_when_it_says(demo: DemoPage, square: Path) -> None:
    """A refusal that will pass is told in the server's words, and the click is sent again after the time it names."""
    demo.expected = re.compile("429")
    demo.choose(square)
    refusals = 2

    def refuse(route: Route) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals < 0:
            route.continue_()
            return
        body = {"message": "Too many calls. Try again in a moment.", "reason": "OVERLOADED", "request_id": "1"}
        route.fulfill(status=429, json=body, headers={"Retry-After": "1"})

    demo.page.route(f"**{SEGMENT}", refuse)
    demo.click(700, 300).wait("waiting")
    assert demo.problem == "Too many calls. Try again in a moment."
    demo.wait("ready")
    assert "score 0.90" in demo.status
    expect(demo.page.locator("#problem")).to_be_hidden()


@pytest.mark.acceptance
def test_a_refused_click_can_be_undone_or_tried_again(demo: DemoPage, square: Path) -> None:
    """An error that asking again would not change is shown with the object, and goes with the click that met it."""
    demo.expected = re.compile("400")
    demo.choose(square)
    body = {"message": "The prompt is out of this world.", "reason": "PROMPT_INVALID", "request_id": "1"}
    demo.page.route(f"**{SEGMENT}", lambda route: route.fulfill(status=400, json=body))
    demo.click(700, 300).wait("ready")
    assert demo.problem == "The prompt is out of this world."
    expect(demo.page.locator(".object .state")).to_have_text("failed")
    demo.press("Control+z")
    expect(demo.page.locator("#problem")).to_be_hidden()
    demo.press("Control+Shift+z")
    demo.page.unroute(f"**{SEGMENT}")
    demo.page.get_by_role("button", name="Try again").click()
    demo.wait("ready")
    assert "score 0.90" in demo.status
