"""The files behind the demo page, as any HTTP client sees them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.stack import Stack, running_stack
from tests.integration.processes import ROOT

FOLDER = ROOT / "gateway" / "demo"
FILES = sorted(file.name for file in FOLDER.iterdir() if file.name != "index.html")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A real gateway."""
    with running_stack() as stack:
        yield stack


def test_the_page(stack: Stack) -> None:
    """/demo is HTML that allows its own files and nothing else, no code among its text, and no frame around it."""
    answer = stack.http.get("/demo")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?://(?!www\.w3\.org)", answer.text)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", answer.text) == [""]


@pytest.mark.parametrize("name", FILES)
def test_every_file(stack: Stack, name: str) -> None:
    """Each file has its right type, names no other host, and is not sent again to who has it."""
    answer = stack.http.get(f"/demo/{name}")
    types = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"] == types.get(Path(name).suffix, "image/jpeg")
    assert answer.content == (FOLDER / name).read_bytes()
    assert b"https://" not in answer.content
    assert answer.headers["cache-control"] == "no-cache"
    etag = answer.headers["etag"]
    for condition in (etag, f'"another", W/{etag}', "*"):
        again = stack.http.get(f"/demo/{name}", headers={"If-None-Match": condition})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    head = stack.http.head(f"/demo/{name}")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/demo/index.html", "/demo/none.js", "/demo/..%2Fapp.py", "/demo/%2e%2e/app.py"])
def test_nothing_else_is_served(stack: Stack, path: str) -> None:
    """What is no file of the page is answered like any unknown route."""
    answer = stack.http.get(path)
    assert (answer.status_code, answer.json()["reason"]) == (404, "REQUEST_INVALID")


def test_the_way_there(stack: Stack) -> None:
    """The front page leads to the demo, an address with a slash is sent on, and the API's description is silent."""
    assert '<a href="demo">' in stack.http.get("/").text
    sent_on = stack.http.get("/demo/")
    assert (sent_on.status_code, sent_on.headers["location"]) == (307, "../demo")
    assert "demo" not in stack.http.get("/openapi.json").text


def test_it_can_be_switched_off() -> None:
    """With demo=false there is neither page nor link."""
    with running_stack(demo=False) as stack:
        assert stack.http.get("/demo").status_code == 404
        assert stack.http.get("/demo/app.js").status_code == 404
        assert 'href="demo"' not in stack.http.get("/").text


def test_it_comes_with_the_package() -> None:
    """The distribution takes all of the page's files along, and the gateway's image copies its folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["gateway"]
    assert sorted(file.name for file in (ROOT / "gateway").glob(pattern)) == sorted([*FILES, "index.html"])
    assert "COPY gateway gateway" in (ROOT / "gateway" / "Dockerfile").read_text()


def test_modules_are_small() -> None:
    """A file is one room: no module has more than 250 lines."""
    lengths = {name: len((FOLDER / name).read_text().splitlines()) for name in FILES if name.endswith(".js")}
    assert max(lengths.values()) <= 250, lengths
