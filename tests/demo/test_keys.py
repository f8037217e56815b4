"""The page by keyboard and by touch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.demo.demo_page import SEGMENT, DemoPage, near
from tests.integration.processes import Process


def test_a_crosshair_includes_and_excludes(demo: DemoPage, square: Path) -> None:
    """Arrow keys move a crosshair from the middle, Shift moves it by a pixel; Enter and Shift+Enter set points."""
    demo.choose(square)
    demo.page.locator("#canvas").focus()
    demo.press("ArrowRight", "Shift+ArrowLeft", "Shift+ArrowUp")
    x, y = (int(number) for number in demo.page.locator("#position").inner_text().split(","))
    assert x > 513
    assert y == 511
    demo.press("Enter").wait("ready")
    demo.press("ArrowDown", "Shift+Enter").wait("ready")
    body = demo.bodies(SEGMENT)[-1]
    assert body["point_labels"] == [1, 0]
    assert body["point_coords"][0] == [x, y]
    assert body["point_coords"][1][1] > y


@pytest.mark.acceptance
def test_a_box_by_two_corners(demo: DemoPage, square: Path) -> None:
    """B sets one corner and then the other; Escape gives a begun box up."""
    demo.choose(square)
    demo.page.locator("#canvas").focus()
    demo.press("b", "ArrowLeft", "ArrowUp", "Escape", "b", "ArrowDown", "ArrowDown", "ArrowRight", "b").wait("ready")
    (body,) = demo.bodies(SEGMENT)
    x0, y0, x1, y1 = body["box"]
    assert x0 < 512
    assert y0 < 512
    assert (x1, x1 > x0, y1 > y0) == (512, True, True)
    assert "score" in demo.status


@pytest.mark.acceptance
def test_objects_by_keys(demo: DemoPage, square: Path) -> None:
    """N begins an object and Delete removes it, but only while the picture has the focus."""
    demo.choose(square)
    demo.page.locator("#canvas").focus()
    demo.press("Enter").wait("ready")
    demo.press("n")
    assert demo.objects == ["Object 1", "Object 2"]
    demo.press("Delete")
    assert demo.objects == ["Object 1"]
    demo.page.get_by_role("button", name="Keys and gestures").focus()
    demo.press("n", "Delete", "3")
    assert demo.objects == ["Object 1"]
    assert "score 0.90" in demo.status


@pytest.mark.acceptance
def test_the_place_of_the_crosshair_is_read_out(demo: DemoPage, square: Path) -> None:
    """When the crosshair rests, screen readers hear where it is and on what."""
    demo.choose(square)
    demo.page.locator("#canvas").focus()
    demo.press("Enter").wait("ready")
    demo.press("Shift+ArrowRight")
    expect(demo.page.locator("#spoken")).to_have_text(re.compile(r"^513, 512(, on Object 1)?$"))


@pytest.mark.acceptance
def test_every_control_is_reached_by_tab(demo: DemoPage, square: Path) -> None:
    """Tab goes round the whole page, through the picture, the list and the downloads."""
    demo.choose(square)
    demo.click(300, 300).wait("ready")
    reached = set()
    for _ in range(40):
        demo.press("Tab")
        reached.add(
            demo.page.evaluate(
                "() => document.activeElement.id || document.activeElement.dataset?.export || "
                "document.activeElement.className || document.activeElement.name"
            )
        )
    assert {
        "open",
        "sample",
        "undo",
        "theme",
        "help",
        "canvas",
        "mode",
        "zoom-in",
        "candidate",
        "pick",
        "label",
        "new-object",
        "png",
        "coco",
        "geojson",
    } <= reached


@pytest.mark.acceptance
def test_zooming_keeps_clicks_where_they_are_seen(demo: DemoPage, square: Path) -> None:
    """After zooming in by the wheel, a click means the pixel under the pointer, and 0 fits the picture again."""
    demo.choose(square)
    level = demo.page.locator("#zoom-level")
    fitted = level.inner_text()
    place = demo.place(700, 300)
    demo.page.mouse.move(*place)
    demo.page.mouse.wheel(0, -400)
    expect(level).not_to_have_text(fitted)
    demo.page.mouse.click(*place)
    demo.wait("ready")
    (point,) = demo.bodies(SEGMENT)[0]["point_coords"]
    assert near(tuple(point), (700, 300))
    demo.press("0")
    expect(level).to_have_text(fitted)


@pytest.fixture
def phone(browser: Browser, server: Process) -> Iterator[DemoPage]:
    """The page on a phone, in the dark."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
        color_scheme="dark",
    )
    demo = DemoPage(context.new_page(), server.url)
    yield demo.open()
    demo.close()


def test_a_phone_is_tapped_on(phone: DemoPage, square: Path) -> None:
    """A tap includes, and with the button below it excludes; nothing is wider than the screen."""
    phone.choose(square)
    phone.page.touchscreen.tap(*phone.place(700, 300))
    phone.wait("ready")
    phone.page.locator(".modes label", has_text="Exclude").tap()
    phone.page.touchscreen.tap(*phone.place(200, 800))
    phone.wait("ready")
    body = phone.bodies(SEGMENT)[-1]
    assert body["point_labels"] == [1, 0]
    assert max(abs(body["point_coords"][0][0] - 700), abs(body["point_coords"][0][1] - 300)) <= 4
    assert phone.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.acceptance
def test_a_phone_is_pinched_and_drawn_on(phone: DemoPage, square: Path) -> None:
    """One finger draws a box, two fingers zoom and set no point."""
    phone.choose(square)
    session = phone.page.context.new_cdp_session(phone.page)

    def touch(kind: str, *fingers: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(fingers)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    x0, y0 = phone.place(300, 300)
    x1, y1 = phone.place(800, 700)
    touch("touchStart", (x0, y0))
    touch("touchMove", ((x0 + x1) / 2, (y0 + y1) / 2))
    touch("touchMove", (x1, y1))
    touch("touchEnd")
    phone.wait("ready")
    (body,) = phone.bodies(SEGMENT)
    assert max(abs(a - b) for a, b in zip(body["box"], (300, 300, 800, 700), strict=True)) <= 5

    fitted = phone.page.locator("#zoom-level").text_content()
    touch("touchStart", (x0, y0), (x1, y1))
    touch("touchMove", (x0 - 30, y0 - 30), (x1 + 30, y1 + 30))
    touch("touchMove", (x0 - 60, y0 - 60), (x1 + 60, y1 + 60))
    touch("touchEnd")
    expect(phone.page.locator("#zoom-level")).not_to_have_text(fitted or "")
    assert len(phone.bodies(SEGMENT)) == 1
