"""Photograph the demo page of a running server for docs/demo.md: `python -m tools.demo_screenshots URL`.

The clicks are at the things in the sample picture; what the masks look like is the model's doing.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images"

_DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
_PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
_SAMPLE = (1200, 800)


def main(url: str) -> None:
    """Take all pictures."""
    program = subprocess.run([ROOT / "tools" / "find_chromium.sh"], capture_output=True, text=True, check=True)  # noqa: S603
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program.stdout.strip(), args=["--no-sandbox"])
        _desktop(browser, url)
        _dark(browser, url)
        _phone(browser, url)
        browser.close()


def _desktop(browser: Browser, url: str) -> None:
    page = _opened(browser, url, **_DESKTOP)
    _save(page, "demo-empty")
    _sample(page)
    _click(page, 735, 540)
    _save(page, "demo-click")
    page.context.set_offline(True)
    _click(page, 400, 400, settled=False)
    expect(page.locator("#problem")).to_be_visible()
    _save(page, "demo-lost")
    page.context.close()


def _dark(browser: Browser, url: str) -> None:
    page = _opened(browser, url, color_scheme="dark", **_DESKTOP)
    _sample(page)
    _label(page, 1, "teapot", lambda: _drag(page, 555, 372, 902, 616))
    page.keyboard.press("n")
    _label(page, 2, "samovar", lambda: _drag(page, 205, 88, 592, 668))
    page.keyboard.press("n")
    _label(page, 3, "apple", lambda: _drag(page, 90, 566, 230, 714))
    page.keyboard.press("n")
    _label(page, 4, "cup and saucer", lambda: _drag(page, 745, 560, 1055, 730))
    # Over the picture, where it hides the crosshair of the keys.
    page.mouse.move(*_place(page, 1000, 100))
    _save(page, "demo-objects-dark")
    page.context.close()


def _phone(browser: Browser, url: str) -> None:
    page = _opened(browser, url, **_PHONE)
    _sample(page)
    page.touchscreen.tap(*_place(page, 735, 540))
    _settle(page)
    _save(page, "demo-phone")
    page.context.close()


def _opened(browser: Browser, url: str, **device: Any) -> Page:
    page = browser.new_context(**device).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{url}/demo")
    page.locator("#model:not([hidden])").wait_for(state="attached")
    return page


def _sample(page: Page) -> None:
    page.get_by_role("button", name="Use the sample").click()
    _settle(page)


def _settle(page: Page) -> None:
    expect(page.locator("body")).to_have_attribute("data-phase", "ready", timeout=120_000)


def _place(page: Page, x: float, y: float) -> tuple[float, float]:
    """Return where a pixel of the fitted sample is in the window."""
    box = page.locator("#canvas").bounding_box()
    if box is None:
        raise RuntimeError("the picture is not shown")
    margin = 8 if box["width"] < 600 else 20
    scale = min((box["width"] - 2 * margin) / _SAMPLE[0], (box["height"] - 2 * margin) / _SAMPLE[1])
    left = box["x"] + (box["width"] - _SAMPLE[0] * scale) / 2
    top = box["y"] + (box["height"] - _SAMPLE[1] * scale) / 2
    return left + x * scale, top + y * scale


def _click(page: Page, x: float, y: float, *, settled: bool = True) -> None:
    page.mouse.click(*_place(page, x, y))
    if settled:
        _settle(page)


def _drag(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    page.mouse.move(*_place(page, x0, y0))
    page.mouse.down()
    page.mouse.move(*_place(page, x1, y1), steps=5)
    page.mouse.up()
    _settle(page)


def _label(page: Page, number: int, label: str, prompt: Any) -> None:
    prompt()
    field = page.get_by_label(f"Label of object {number}")
    field.fill(label)
    field.press("Enter")
    page.locator("#canvas").focus()


def _save(page: Page, name: str) -> None:
    """Keep what is seen."""
    page.wait_for_timeout(300)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").save(FOLDER / f"{name}.webp", quality=90, method=6)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
