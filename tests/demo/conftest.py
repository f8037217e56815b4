"""A real browser and a real server for the demo page."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.demo.demo_page import PATIENCE_MS, DemoPage
from tests.integration.processes import ROOT, Process, service

STUB = {
    "SAMOVAR_CHECKPOINT": "stub:v1",
    # Less than the body of the picture that is meant to be too large.
    "SAMOVAR_BODY_MAX_BYTES": str(2**20),
}
"""The stub: its masks show the prompt that they are the answer to."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A Chromium of the system's, without a window."""
    program = subprocess.run(
        [ROOT / "tools" / "find_chromium.sh"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not program and os.environ.get("WITHOUT_CHROMIUM"):
        pytest.skip("there is no Chromium, and WITHOUT_CHROMIUM says to do without")
    if not program:
        pytest.fail("Chromium is not installed; 'make test' installs it or says how")
    expect.set_options(timeout=PATIENCE_MS)
    # As root, as in containers, its sandbox does not work; /dev/shm is small there.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """All of Samovar in one process."""
    with service("samovar", tmp_path_factory.mktemp("demo"), STUB, arguments=("serve",)) as process:
        yield process


@pytest.fixture
def unopened(browser: Browser, server: Process) -> Iterator[DemoPage]:
    """The demo page of `server`, not opened yet; at the end it must not have complained."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, accept_downloads=True)
    demo = DemoPage(context.new_page(), server.url)
    yield demo
    demo.close()


@pytest.fixture
def demo(unopened: DemoPage) -> DemoPage:
    """The demo page of `server`, open."""
    return unopened.open()


@pytest.fixture(scope="package")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 1024x1024 pixels, which the stub's mask fills."""
    ramp = np.linspace(40, 200, 1024, dtype=np.uint8)
    pixels = np.dstack([np.broadcast_to(ramp, (1024, 1024)), np.broadcast_to(ramp[:, None], (1024, 1024))] * 2)[..., :3]
    file = tmp_path_factory.mktemp("picture") / "square.png"
    file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return file
