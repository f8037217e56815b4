"""Who may look in, and who may not: keys, the content policy, screen readers, and what the server offers besides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.demo.conftest import STUB
from tests.demo.demo_page import SEGMENT, DemoPage
from tests.integration.processes import Process, service

KEY = "a-key-of-the-tests-0123456789abcdef"


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that admits the holders of a key alone."""
    folder = tmp_path_factory.mktemp("locked")
    keys = folder / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    settings = STUB | {"SAMOVAR_API_KEYS_FILE": str(keys)}
    with service("samovar", folder, settings, arguments=("serve",)) as process:
        yield process


@pytest.mark.acceptance
def test_a_key_is_asked_for(browser: Browser, locked_server: Process, square: Path) -> None:
    """A server with keys asks for one, again if it is wrong; it is kept for the tab, and appears in no address."""
    demo = DemoPage(browser.new_context().new_page(), locked_server.url)
    demo.expected = re.compile("401")
    demo.page.goto(f"{demo.url}/demo")
    field = demo.page.get_by_label("This server wants an API key.")
    field.fill("wrong")
    field.press("Enter")
    expect(field).to_have_value("")
    expect(field).to_be_visible()
    field.fill(KEY)
    demo.page.get_by_role("button", name="Use this key").click()
    expect(demo.page.locator("#model")).to_have_text("stub")
    expect(field).to_be_hidden()
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    assert "score 0.90" in demo.status
    demo.page.reload()
    expect(demo.page.locator("#model")).to_have_text("stub")
    assert not any(KEY in request.url for request in demo.asked)
    assert demo.page.evaluate("() => JSON.stringify(localStorage)") == "{}"
    demo.close()


def violations(demo: DemoPage) -> list[str]:
    """Return what axe-core finds wrong, with where."""
    rules = (resources.files("axe_playwright_python") / "axe.min.js").read_text()
    demo.page.evaluate(rules)
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    found: dict[str, Any] = demo.page.evaluate("options => axe.run(document, options)", options)
    assert len(found["passes"]) > 10
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


def test_axe_finds_nothing(demo: DemoPage, square: Path) -> None:
    """axe-core has no complaint about the page, empty and at work."""
    assert violations(demo) == []
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    demo.press("n")
    assert violations(demo) == []


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "device",
    [{"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}],
    ids=["dark", "phone"],
)
def test_axe_finds_nothing_elsewhere(
    browser: Browser, server: Process, square: Path, tmp_path: Path, device: dict[str, Any]
) -> None:
    """Nor has it in the dark, on a phone, about the help, or about an error."""
    demo = DemoPage(browser.new_context(**device).new_page(), server.url).open()
    assert violations(demo) == []
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    assert violations(demo) == []
    demo.page.get_by_role("button", name="Keys and gestures").click()
    assert violations(demo) == []
    demo.press("Escape")
    file = tmp_path / "notes.txt"
    file.write_text("no picture")
    with demo.page.expect_file_chooser() as chooser:
        demo.page.get_by_role("button", name="Open picture").click()
    chooser.value.set_files(file)
    assert demo.problem
    assert violations(demo) == []
    demo.close()


@pytest.mark.acceptance
def test_the_theme_can_be_changed(demo: DemoPage) -> None:
    """The button turns light into dark, which the page remembers."""
    background = "() => getComputedStyle(document.body).backgroundColor"
    light = demo.page.evaluate(background)
    demo.page.get_by_role("button", name="Light or dark").click()
    dark = demo.page.evaluate(background)
    assert dark != light
    demo.page.reload()
    assert demo.page.evaluate(background) == dark


@pytest.mark.acceptance
def test_the_policy_holds(demo: DemoPage) -> None:
    """Code and styles that come as text are refused, and so is asking anybody else."""
    demo.expected = re.compile("Content Security Policy|TrustedHTML|Trusted|violates")
    attempts = """async () => {
        const refused = [];
        addEventListener("securitypolicyviolation", event => refused.push(event.effectiveDirective));
        const script = document.createElement("script");
        try { script.textContent = "window.taken = true"; } catch { refused.push("text"); }
        document.body.append(script);
        try { document.body.insertAdjacentHTML("beforeend", "<i>"); } catch { refused.push("html"); }
        const style = document.createElement("style");
        style.textContent = "body { display: none }";
        document.head.append(style);
        await fetch("https://example.invalid/").catch(() => {});
        await new Promise(done => setTimeout(done, 200));
        return [window.taken ?? false, getComputedStyle(document.body).display, refused];
    }"""
    taken, display, refused = demo.page.evaluate(attempts)
    assert (taken, display) == (False, "flex")
    assert {"html", "style-src-elem", "connect-src"} <= set(refused)
    demo.asked = [request for request in demo.asked if "example.invalid" not in request.url]


EVERYTHING = "/sam/segment_everything"


@pytest.mark.acceptance
def test_segment_everything(demo: DemoPage, square: Path, tmp_path: Path) -> None:
    """A button lists all that the server finds by itself, in one step of undo; a click then begins another object."""
    demo.choose(square)
    demo.click(700, 300).wait("ready")

    def with_a_coarse_grid(route: Route) -> None:
        route.continue_(post_data=json.dumps(json.loads(route.request.post_data or "") | {"points_per_side": 3}))

    demo.page.route(f"**{EVERYTHING}", with_a_coarse_grid)
    demo.page.get_by_role("button", name="Segment everything").click()
    expect(demo.page.locator("#status")).to_have_text(re.compile(r"^[1-9]\d* objects found\.$"))
    expect(demo.page.locator("#work")).to_be_hidden()
    found = len(demo.objects) - 1
    assert f"{found} objects" in demo.status
    assert all(mask.any() for mask in demo.masks(tmp_path))
    assert demo.bodies(EVERYTHING)[0]["image_id"] == demo.bodies(SEGMENT)[0]["image_id"]
    demo.click(100, 900).wait("ready")
    assert len(demo.objects) == found + 2
    demo.press("Control+z", "Control+z")
    assert demo.objects == ["Object 1"]


@pytest.mark.acceptance
def test_segment_everything_can_be_stopped(demo: DemoPage, square: Path) -> None:
    """It shows how far it is, and stops when it is told to, with nothing listed."""
    demo.choose(square)
    demo.page.get_by_role("button", name="Segment everything").click()
    expect(demo.page.get_by_role("progressbar", name="Segmenting everything")).to_be_visible()
    assert violations(demo) == []
    demo.page.get_by_role("button", name="Stop").click()
    expect(demo.page.locator("#work")).to_be_hidden()
    expect(demo.page.get_by_role("button", name="Segment everything")).to_be_enabled()
    assert demo.status == "Stopped."
    assert demo.objects == []


@pytest.mark.acceptance
def test_segment_everything_is_offered_where_it_is_served(unopened: DemoPage, square: Path) -> None:
    """Where the server's description does not name the route, there is no button."""
    unopened.page.route("**/openapi.json", lambda route: route.fulfill(json={"paths": {SEGMENT: {"post": {}}}}))
    with unopened.page.expect_response("**/openapi.json"):
        unopened.open()
    # Long after the description was read.
    unopened.choose(square)
    expect(unopened.page.get_by_role("button", name="Segment everything")).to_be_hidden()
