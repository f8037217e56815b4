"""Clicks, boxes, candidates, objects and undo: the mask always follows what was done last."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.demo.demo_page import EMBED, SEGMENT, DemoPage, near, prompt_in


def test_a_click_is_answered_with_a_mask(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """The mask of the click is drawn over the picture, with its score, its size and the time it took."""
    demo.choose(square)
    demo.click(700, 301).wait("ready")
    assert re.fullmatch(r"Object 1: score 0\.90, \d+ % of the picture \(candidate 1 of 3\)\.", demo.status)
    assert re.fullmatch(r"\d+ ms|\d\.\d s", demo.page.locator("#timing-trip").inner_text())
    assert re.fullmatch(r"\d+ ms|\d\.\d s", demo.page.locator("#timing-server").inner_text())
    (mask,) = demo.masks(tmp_path)
    assert near(prompt_in(mask), (700, 301))
    # The middles of two cells: inside the mask a picture is coloured, outside it is as it was.
    cells = [(x * 64 + 32, y * 64 + 32) for y in range(4) for x in range(16)]
    inside = next(cell for cell in cells if mask[cell[1], cell[0]])
    outside = next(cell for cell in cells if not mask[cell[1], cell[0]])
    drawn = demo.colours(inside, outside)
    demo.press("Control+z").wait("ready")
    plain = demo.colours(inside, outside)
    assert drawn[0] != plain[0]
    assert drawn[1] == plain[1]


@pytest.mark.acceptance
def test_the_picture_is_sent_once(demo: DemoPage, square: Path) -> None:
    """However many clicks there are, they send the id alone."""
    demo.choose(square)
    for x in (100, 500, 900):
        demo.click(x, 500).wait("ready")
    assert len(demo.bodies(EMBED)) == 1
    clicks = demo.bodies(SEGMENT)
    assert [len(body["point_coords"]) for body in clicks] == [1, 2, 3]
    assert all("image" not in body and body["image_id"] for body in clicks)


@pytest.mark.acceptance
def test_the_right_button_or_alt_excludes(demo: DemoPage, square: Path) -> None:
    """Left includes, right and Alt exclude, and the buttons below turn a plain click into either."""
    demo.choose(square)
    demo.click(100, 100).wait("ready")
    demo.click(200, 100, button="right").wait("ready")
    demo.click(300, 100, modifier="Alt").wait("ready")
    demo.page.get_by_role("radio", name="Exclude").check()
    demo.click(400, 100).wait("ready")
    assert demo.bodies(SEGMENT)[-1]["point_labels"] == [1, 0, 0, 0]


def test_a_drag_is_a_box(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """A box dragged from any corner is the prompt, and later clicks are added to it."""
    demo.choose(square)
    demo.drag(800, 700, 200, 300).wait("ready")
    (body,) = demo.bodies(SEGMENT)
    assert near(tuple(body["box"][:2]), (200, 300))
    assert near(tuple(body["box"][2:]), (800, 700))
    assert "point_coords" not in body
    assert near(prompt_in(demo.masks(tmp_path)[0]), (200, 300))
    demo.click(500, 500).wait("ready")
    assert demo.bodies(SEGMENT)[-1]["box"] == body["box"]
    assert len(demo.bodies(SEGMENT)[-1]["point_coords"]) == 1


def test_undo_and_redo_by_keyboard(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """Undo and redo bring back masks that were seen before without asking for them again."""
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    demo.press("n")
    demo.click(100, 900).wait("ready")
    asked = len(demo.bodies(SEGMENT))
    assert [
        near(prompt_in(mask), place) for mask, place in zip(demo.masks(tmp_path), [(700, 300), (100, 900)], strict=True)
    ]
    demo.press("Control+z", "Control+z")
    assert demo.objects == ["Object 1"]
    demo.press("Control+z")
    assert demo.objects == []
    expect(demo.page.get_by_role("button", name="Undo")).to_be_disabled()
    expect(demo.page.locator("[data-export=png]")).to_be_disabled()
    demo.press("Control+Shift+z", "Control+y", "Control+y")
    assert demo.objects == ["Object 1", "Object 2"]
    assert [near(prompt_in(mask), (700, 300)) for mask in demo.masks(tmp_path)] == [True, False]
    assert len(demo.bodies(SEGMENT)) == asked


@pytest.mark.acceptance
def test_typing_a_label_keeps_its_own_undo(demo: DemoPage, square: Path) -> None:
    """In a text field Ctrl+Z is the field's; the click stays."""
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    demo.page.locator(".object .label").click()
    demo.press("End", "x", "Control+z")
    assert demo.objects == ["Object 1"]


@pytest.mark.acceptance
def test_three_candidates_to_choose_from(demo: DemoPage, square: Path) -> None:
    """Three masks come with their scores; another than the best can be chosen, by mouse or by number, and undone."""
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    candidates = demo.page.locator(".candidate")
    assert [text.split()[-1] for text in candidates.all_inner_texts()] == ["0.90", "0.80", "0.70"]
    demo.page.get_by_role("radio", name="Candidate 2, score 0.80").check()
    assert "score 0.80" in demo.status
    demo.page.locator("#canvas").focus()
    demo.press("3")
    assert "score 0.70" in demo.status
    demo.press("Control+z", "Control+z")
    assert "score 0.90" in demo.status
    assert len(demo.bodies(SEGMENT)) == 1


@pytest.mark.acceptance
def test_several_objects_with_labels(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """Objects are listed, named, returned to and removed."""
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    demo.page.get_by_role("button", name=re.compile("^New object")).last.click()
    demo.click(100, 900).wait("ready")
    label = demo.page.get_by_label("Label of object 1")
    label.fill("samovar")
    label.press("Enter")
    assert demo.objects == ["samovar", "Object 2"]
    demo.page.get_by_role("button", name="Work on samovar").click()
    demo.click(200, 200).wait("ready")
    assert [len(body["point_coords"]) for body in demo.bodies(SEGMENT)] == [1, 1, 2]
    demo.page.get_by_role("button", name="Remove samovar").click()
    assert demo.objects == ["Object 2"]
    (mask,) = demo.masks(tmp_path)
    assert near(prompt_in(mask), (100, 900))


def test_the_latest_prompt_wins(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """A request whose prompt was changed meanwhile is aborted, and only the last one's mask is ever shown."""
    demo.choose(square)
    held: list[Route] = []
    released = threading.Event()
    aborted: list[str] = []
    demo.page.on("requestfailed", lambda request: aborted.append(request.failure or ""))

    def hold_the_first(route: Route) -> None:
        if released.is_set() or held:
            route.continue_()
        else:
            held.append(route)

    demo.page.route(f"**{SEGMENT}", hold_the_first)
    demo.click(700, 300).wait("segmenting")
    before = demo.colours(*[(x * 64 + 32, 32) for x in range(16)])
    demo.press("Control+z")
    demo.click(100, 900).wait("ready")
    assert len(held) == 1
    assert aborted == ["net::ERR_ABORTED"]
    (mask,) = demo.masks(tmp_path)
    assert near(prompt_in(mask), (100, 900))
    # While the first was awaited, nothing was drawn over the picture.
    demo.press("Control+z")
    assert demo.colours(*[(x * 64 + 32, 32) for x in range(16)]) == before
    assert len(demo.bodies(SEGMENT)) == 2


@pytest.mark.acceptance
def test_clicks_made_while_the_picture_is_read_are_not_lost(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """A click before the server has the picture is answered as soon as it does."""
    held: list[Route] = []
    demo.page.route(f"**{EMBED}", lambda route: held.append(route))
    with demo.page.expect_file_chooser() as chooser:
        demo.page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(square)
    demo.wait("reading")
    expect(demo.page.get_by_role("progressbar", name="Reading the picture")).to_be_visible()
    demo.click(700, 300)
    demo.page.wait_for_timeout(50)
    held[0].continue_()
    demo.wait("ready")
    expect(demo.page.get_by_role("progressbar", name="Reading the picture")).to_be_hidden()
    assert near(prompt_in(demo.masks(tmp_path)[0]), (700, 300))
