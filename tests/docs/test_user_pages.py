"""What docs/ tells users is true: every block runs, the references are the code's, the links lead somewhere."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import nbformat
import numpy as np
import pytest
import yaml
from nbclient import NotebookClient
from PIL import Image

from tests.docs.snippets import DOCS, ROOT, Snippet, at, run, snippets
from tests.integration.processes import RANDOM_MODEL, Process, service
from tools import grpc_reference, http_reference

PAGES = ["quickstart.md", "clients.md"]
REFERENCES = ["http.md", "grpc.md"]
NOTEBOOK = ROOT / "examples" / "segment.ipynb"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """What the pages call `make serve`."""
    with service("samovar", tmp_path_factory.mktemp("server"), RANDOM_MODEL, arguments=("serve",)) as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, server: Process) -> Path:
    """Where a reader of clients.md types, with the demo page's picture."""
    place = tmp_path_factory.mktemp("reader")
    sample = httpx2.get(f"{server.url}/demo/sample.jpg", trust_env=False).raise_for_status()
    (place / "photo.jpg").write_bytes(sample.content)
    return place


def _starts_the_server(snippet: Snippet) -> None:
    recipe = re.search(r"^serve:.*\n\t@exec (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    # The fixture starts the same.
    assert snippet.text == "make serve\n"
    assert recipe[1].startswith("$(BIN)/python -m samovar serve")


def _names_the_environment(snippet: Snippet) -> None:
    # `run` does what this does; the Makefile says where the environment is.
    assert snippet.text == ". .venv/bin/activate\n"
    assert re.search(r"^VENV := \.venv$", (ROOT / "Makefile").read_text(), re.MULTILINE)


SPECIAL = {"starts the server": _starts_the_server, "in the environment": _names_the_environment}


def follow(snippet: Snippet, server: Process, folder: Path) -> None:
    """Do what a reader does with a block."""
    text = at(snippet.text, server.port)
    if snippet.marker:
        SPECIAL[snippet.marker](snippet)
    elif snippet.language == "yaml":
        address = yaml.safe_load(text)["remote_server_settings"]["server_url"]
        assert httpx2.get(f"{address}/v1/models", trust_env=False).json()["success"]
    else:
        assert snippet.language in {"sh", "python"}
        # Without a server, `samovar segment` loads what the reader's machine has.
        run(text, snippet.language, folder, RANDOM_MODEL)


def test_the_quickstart(server: Process, tmp_path: Path) -> None:
    """Each block of the quickstart runs as printed, one after another, from an empty folder to masks in files."""
    for snippet in snippets("quickstart.md"):
        follow(snippet, server, tmp_path)
    mask, overlay = (Image.open(io.BytesIO((tmp_path / name).read_bytes())) for name in ("mask.png", "overlay.png"))
    assert mask.size == overlay.size == (1200, 800)
    (annotation,) = json.loads((tmp_path / "mask.json").read_text())["masks"]
    assert annotation["segmentation"]["size"] == [800, 1200]


# tests/acceptance/test_pages.py runs those that need programs which `make test` does without.
HERE = [one for one in snippets("clients.md") if not one.marker.startswith("acceptance: ")]


@pytest.mark.parametrize("snippet", HERE, ids=str)
def test_ways_to_call(snippet: Snippet, server: Process, folder: Path) -> None:
    """Each block of clients.md runs as printed, on its own."""
    follow(snippet, server, folder)


@pytest.mark.acceptance
def test_the_notebook_runs(server: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of the notebook runs against a live server, and pictures are shown; it is kept without outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("SAMOVAR_SERVER", server.url)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 4


def test_the_reference_of_http_is_the_gateways() -> None:
    """docs/http.md is what `make docs` writes."""
    assert http_reference.PAGE.read_text() == http_reference.render(http_reference.openapi()), "run 'make docs'"


def test_the_reference_of_grpc_is_that_of_the_protos() -> None:
    """docs/grpc.md is what `make docs` writes."""
    assert grpc_reference.PAGE.read_text() == grpc_reference.render(grpc_reference.described()), "run 'make docs'"


@pytest.mark.parametrize("page", [*PAGES, *REFERENCES, "proxies.md", "security.md", "tracing.md", "kubernetes.md"])
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file of the project, every anchor a heading of its page."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (DOCS / page).read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        place = (DOCS / file) if file else DOCS / page
        assert place.exists(), target
        if anchor:
            lines = place.read_text().splitlines()
            headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower() for line in lines if line.startswith("#")}
            assert anchor in {heading.replace(" ", "-") for heading in headings}, target


def test_the_examples_of_the_reference_are_those_that_are_tried() -> None:
    """Each JSON example of docs/http.md is one of the OpenAPI document, which the contract's tests send."""
    document = http_reference.openapi()
    examples = [
        example["value"]
        for methods in document["paths"].values()
        for operation in methods.values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
        for example in content.get("examples", {}).values()
    ]
    printed = [json.loads(snippet.text) for snippet in snippets("http.md")]
    assert len(printed) == len(examples) > 10
    assert np.all([set(one) == set(other) for one, other in zip(printed, examples, strict=True)])
