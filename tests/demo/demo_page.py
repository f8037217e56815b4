"""The demo page as a person uses it, in a real browser, and what may be asked about it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, Request, expect
from pycocotools import mask as coco_mask

from sam.stub import GRID

PATIENCE_MS = 30_000
SEGMENT = "/sam/segment_image"
EMBED = "/sam/embed_image"
NETWORK_CHANGED = "ERR_NETWORK_CHANGED"
"""How Chromium cuts requests short, loopback too, when another program sets up or removes a network interface."""

Array = npt.NDArray[Any]


class DemoPage:
    """A page that was opened, and everything it asked for."""

    def __init__(self, page: Page, url: str) -> None:
        """Watch a page; it is opened by `open`."""
        self.page = page
        self.url = url
        self.asked: list[Request] = []
        self.complaints: list[str] = []
        self.expected = re.compile("nothing is expected to go wrong")
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self.asked.append(request))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")

    def open(self) -> DemoPage:
        """Go to the page and wait until it knows the model."""
        for _ in range(3):
            self.page.goto(f"{self.url}/demo")
            if not any(NETWORK_CHANGED in words for words in self.complaints):
                break
            self.complaints.clear()
        self.page.locator("#model:not([hidden])").wait_for(state="attached")
        return self

    def close(self) -> None:
        """Leave the page; nothing may have gone wrong on it, and it may have asked nobody else."""
        self.page.context.close()
        excused = re.compile(f"{self.expected.pattern}|{NETWORK_CHANGED}")
        wrong = [words for words in self.complaints if not excused.search(words)]
        assert not wrong, wrong
        outside = [request.url for request in self.asked if not request.url.startswith((self.url, "blob:"))]
        assert not outside, outside

    def choose(self, file: Path) -> DemoPage:
        """Choose a file, and wait until it can be clicked on."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name=re.compile("Choose a picture|Open picture")).first.click()
        chooser.value.set_files(file)
        expect(self.page.locator("#canvas")).to_have_attribute("aria-label", re.compile(re.escape(file.name)))
        self.wait("ready")
        return self

    def wait(self, phase: str) -> None:
        """Wait for a phase: empty, reading, segmenting, ready, waiting or failed."""
        expect(self.page.locator("body")).to_have_attribute("data-phase", phase, timeout=PATIENCE_MS)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a pixel of the fitted picture is in the window."""
        left, top, width, height = self.page.locator("#canvas").evaluate(
            "canvas => ['left', 'top', 'width', 'height'].map(side => canvas.getBoundingClientRect()[side])"
        )
        text = self.page.locator("#picture-facts").inner_text()
        across, down = (int(number) for number in re.findall(r"\d+", text))
        margin = 8 if width < 600 else 20
        scale = min((width - 2 * margin) / across, (height - 2 * margin) / down, 4)
        return (
            left + (width - across * scale) / 2 + (x + 0.5) * scale,
            top + (height - down * scale) / 2 + (y + 0.5) * scale,
        )

    def click(self, x: float, y: float, button: Any = "left", modifier: str | None = None) -> DemoPage:
        """Click on a pixel of the picture."""
        if modifier:
            self.page.keyboard.down(modifier)
        self.page.mouse.click(*self.place(x, y), button=button)
        if modifier:
            self.page.keyboard.up(modifier)
        return self

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> DemoPage:
        """Draw a box from one pixel to another."""
        self.page.mouse.move(*self.place(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(x1, y1), steps=4)
        self.page.mouse.up()
        return self

    def press(self, *keys: str) -> DemoPage:
        """Press keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)
        return self

    @property
    def status(self) -> str:
        """What the page says."""
        return self.page.locator("#status").inner_text()

    @property
    def problem(self) -> str:
        """What the page says is wrong, once it does."""
        alert = self.page.locator("#problem")
        alert.wait_for()
        return self.page.locator("#problem-text").inner_text()

    @property
    def objects(self) -> list[str]:
        """The labels in the list."""
        labels: list[str] = self.page.locator(".object .label").evaluate_all("fields => fields.map(f => f.value)")
        return labels

    def bodies(self, route: str) -> list[dict[str, Any]]:
        """Return what was sent to a route."""
        sent = [request for request in self.asked if request.method == "POST" and request.url.endswith(route)]
        return [json.loads(request.post_data or "") for request in sent]

    def download(self, kind: str, folder: Path) -> Path:
        """Download one of png, coco and geojson."""
        with self.page.expect_download() as download:
            self.page.locator(f"[data-export={kind}]").click()
        file = folder / download.value.suggested_filename
        download.value.save_as(file)
        return file

    def masks(self, folder: Path) -> list[Array]:
        """Return the masks of all objects, bool HxW, as they would be downloaded."""
        coco = json.loads(self.download("coco", folder).read_text())
        return [coco_mask.decode(entry["segmentation"]).astype(bool) for entry in coco["annotations"]]

    def colours(self, *places: tuple[float, float]) -> list[tuple[int, ...]]:
        """Return what is drawn at pixels of the picture, RGB each."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seen = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))
        windows = [self.place(*place) for place in places]
        return [tuple(seen[int(y), int(x)].tolist()) for x, y in windows]


def prompt_in(mask: Array) -> tuple[int, int]:
    """Read from a stub's mask of a picture of 1024x1024 the first point, or corner, that it is the answer to."""
    side = mask.shape[0] // GRID
    grid = mask[side // 2 :: side, side // 2 :: side]
    x, y = (int("".join(str(int(bit)) for bit in row), 2) for row in grid[-2:])
    return x, y


def near(place: tuple[int, int], expected: tuple[int, int]) -> bool:
    """Whether two places are the same but for the rounding of a window smaller than the picture."""
    return bool(np.abs(np.subtract(place, expected)).max() <= 2)
