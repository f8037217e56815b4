"""How pictures get in: dropped, pasted, chosen, or the one that comes along; and what cannot get in."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.demo.demo_page import EMBED, DemoPage


def test_the_page_explains_itself(demo: DemoPage) -> None:
    """Before there is a picture, the page says in one sentence what to do, and what model answers."""
    demo.wait("empty")
    expect(demo.page.get_by_text("Drop a picture here, then click on anything in it")).to_be_visible()
    expect(demo.page.locator("#model")).to_have_text("stub")
    expect(demo.page.locator("#model-notice")).to_contain_text("mean nothing")


@pytest.mark.acceptance
def test_the_sample_can_be_clicked_on(demo: DemoPage) -> None:
    """The picture that comes along is opened by a button."""
    demo.page.get_by_role("button", name="Use the sample").click()
    demo.wait("ready")
    expect(demo.page.locator("#picture-facts")).to_have_text("1200 \u00d7 800")
    demo.click(400, 300).wait("ready")
    assert "score" in demo.status


def test_a_file_is_dropped(demo: DemoPage, square: Path) -> None:
    """A file dragged over the page is announced, and opened when it is dropped."""
    session = demo.page.context.new_cdp_session(demo.page)
    data = {"items": [], "files": [str(square)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 400, "data": data})
    expect(demo.page.get_by_text("Drop to open")).to_be_visible()
    session.send("Input.dispatchDragEvent", {"type": "drop", "x": 400, "y": 400, "data": data})
    demo.wait("ready")
    expect(demo.page.get_by_text("Drop to open")).to_be_hidden()
    expect(demo.page.get_by_role("application", name="square.png, 1024 by 1024 pixels")).to_be_visible()
    assert demo.bodies(EMBED)[0]["image"]["value"].startswith("data:image/png;base64,")


@pytest.mark.acceptance
def test_a_picture_is_pasted(demo: DemoPage) -> None:
    """A picture in the clipboard is opened by Ctrl+V."""
    demo.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    demo.page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(80, 60);
            canvas.getContext("2d").fillRect(0, 0, 40, 40);
            const blob = await canvas.convertToBlob({ type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }"""
    )
    demo.press("Control+v").wait("ready")
    expect(demo.page.locator("#picture-facts")).to_have_text("80 \u00d7 60")


@pytest.mark.acceptance
def test_text_is_no_picture(demo: DemoPage) -> None:
    """Pasting text says what to copy instead."""
    demo.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    demo.page.evaluate("() => navigator.clipboard.writeText('https://example.invalid/picture.png')")
    demo.press("Control+v")
    assert demo.problem == "The clipboard holds no picture. Copy the picture itself, not its address."


@pytest.mark.acceptance
def test_another_picture_begins_anew(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """A second picture has no objects and nothing to undo, and the first one's id is no longer clicked on."""
    demo.choose(square)
    demo.click(300, 300).wait("ready")
    second = tmp_path / "second.jpg"
    second.write_bytes(cv2.imencode(".jpg", np.full((300, 500, 3), 90, np.uint8))[1].tobytes())
    demo.choose(second)
    assert demo.objects == []
    expect(demo.page.get_by_role("button", name="Undo")).to_be_disabled()
    expect(demo.page.locator("#picture-facts")).to_have_text("500 \u00d7 300")
    demo.click(250, 150).wait("ready")
    assert "score" in demo.status


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ["BMP", "GIF"])
def test_other_formats_are_sent_as_png(demo: DemoPage, tmp_path: Path, kind: str) -> None:
    """What the browser can show and the server does not decode is sent as the pixels that are seen."""
    file = tmp_path / f"picture.{kind.lower()}"
    Image.new("RGB", (90, 70), "navy").save(file)
    demo.choose(file)
    assert demo.bodies(EMBED)[0]["image"]["value"].startswith("data:image/png;base64,")


@pytest.mark.acceptance
def test_a_photograph_on_its_side_is_clicked_on_upright(demo: DemoPage, tmp_path: Path) -> None:
    """The EXIF orientation is undone by the browser as by the server, so that clicks land where they are seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.jpg"
    Image.new("RGB", (300, 200), "olive").save(file, exif=exif)
    demo.choose(file)
    expect(demo.page.locator("#picture-facts")).to_have_text("200 \u00d7 300")
    assert len(demo.bodies(EMBED)) == 1


@pytest.mark.acceptance
def test_what_is_no_picture_is_refused_in_words(demo: DemoPage, tmp_path: Path) -> None:
    """A file that is no picture is named, with what to try instead, and the page stays as it was."""
    file = tmp_path / "notes.txt"
    file.write_text("no picture")
    with demo.page.expect_file_chooser() as chooser:
        demo.page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(file)
    assert demo.problem == "notes.txt is not a picture that this browser can show. Try a JPEG, PNG or WebP file."
    demo.page.get_by_role("button", name="Dismiss").click()
    expect(demo.page.locator("#problem")).to_be_hidden()
    demo.wait("empty")


@pytest.mark.acceptance
def test_a_picture_over_the_servers_limit_is_told_in_words(demo: DemoPage, tmp_path: Path) -> None:
    """What the server refuses is shown in its words, and another picture can be opened at once."""
    demo.expected = re.compile("413")
    file = tmp_path / "large.png"
    noise = np.random.default_rng(1).integers(0, 255, (800, 800, 3), dtype=np.uint8)
    file.write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    with demo.page.expect_file_chooser() as chooser:
        demo.page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(file)
    demo.wait("failed")
    assert re.search(r"1048576|too large|at most", demo.problem), demo.problem
    expect(demo.page.get_by_role("button", name="Try again")).to_be_visible()
    demo.page.get_by_role("button", name="Sample", exact=True).click()
    demo.wait("ready")
    expect(demo.page.locator("#problem")).to_be_hidden()
