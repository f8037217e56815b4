"""The blocks of docs/ that need programs which `make test` does without."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.conftest import ROOT, installed
from tests.docs.snippets import at, run, snippets
from tests.integration.processes import Process

BLOCKS = {
    one.marker.removeprefix("acceptance: "): one
    for one in snippets("clients.md")
    if one.marker.startswith("acceptance: ")
}


@pytest.fixture
def folder(server: Process, tmp_path: Path) -> Path:
    """Where a reader types, with the demo page's picture."""
    sample = httpx2.get(f"{server.url}/demo/sample.jpg", trust_env=False).raise_for_status()
    (tmp_path / "photo.jpg").write_bytes(sample.content)
    return tmp_path


def test_these_are_all() -> None:
    """Every block that is left to this file is run by it."""
    assert set(BLOCKS) == {"buf", "node", "inference-sdk"}


def test_buf_curl(server: Process, folder: Path) -> None:
    """buf, from npm where there is none, calls the services through reflection."""
    version = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("BUF_VERSION"))
    (folder / "buf").write_text(f'#!/bin/sh\ncd {ROOT} && BUF_VERSION={version.split()[-1]} exec tools/buf.sh "$@"\n')
    (folder / "buf").chmod(0o755)
    text = "PATH=.:$PATH\n" + at(BLOCKS["buf"].text, server.port)
    done = run(text, "sh", folder)
    assert '"imageDigest"' in done.stdout
    assert '"counts"' in done.stdout


def test_node(server: Process, folder: Path) -> None:
    """The commands for the Node example run in a copy of the project."""
    example = folder / "examples" / "node"
    shutil.copytree(ROOT / "examples" / "node", example)
    shutil.copytree(ROOT / "protos", folder / "protos")
    # What `npm install` would fetch is there already.
    shutil.copytree(installed("node/node_modules"), example / "node_modules")
    shutil.copy(folder / "photo.jpg", example)
    places = {"ENCODER": f"127.0.0.1:{server.port + 1}", "DECODER": f"127.0.0.1:{server.port + 2}"}
    done = run(BLOCKS["node"].text.replace("npm install\n", "npm install --offline --silent\n"), "sh", folder, places)
    assert "1200 x 800 pixels" in done.stdout


def test_inference_sdk(server: Process, folder: Path) -> None:
    """The snippet for the inference-sdk runs in the package's own environment."""
    block = BLOCKS["inference-sdk"]
    done = run(at(block.text, server.port), "python", folder, python=str(installed("sdk/bin/python")))
    assert done.stdout.count("polygons") == 2
