"""Our own client where nothing but its extra is installed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.acceptance.conftest import installed
from tests.docs.snippets import at, run, snippets
from tests.integration.processes import Process

# Of the snippets of clients.md, those that need no more than the client itself.
OURS = [
    one
    for one in snippets("clients.md")
    if one.language == "python" and not one.marker and "import supervision" not in one.text
]


def client(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's Python."""
    command = [str(installed("client/bin/python")), *arguments]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_the_extra_brings_no_service() -> None:
    """The environment has neither torch nor what the services run on."""
    done = client("-c", "import importlib.util as i; print([n for n in ('torch', 'fastapi', 'cv2') if i.find_spec(n)])")
    assert done.stdout == "[]\n"


def test_the_snippets_run_there(server: Process, photo: Path) -> None:
    """Python, over HTTP and gRPC, as clients.md prints it."""
    assert len(OURS) >= 4
    for snippet in OURS:
        run(at(snippet.text, server.port), "python", photo.parent, python=str(installed("client/bin/python")))


def test_the_commands_run_there(server: Process, photo: Path) -> None:
    """`samovar segment` draws masks and `samovar embed` fills a server, both without a service at hand."""
    overlay = photo.with_name("overlay.png")
    box = ("--box", "100,50,500,400")
    done = client(
        "-m", "samovar", "segment", str(photo), *box, "--server", server.url, "--overlay", str(overlay), "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == [str(overlay)]
    done = client("-m", "samovar", "embed", str(photo), "--server", server.url)
    assert (done.returncode, done.stderr) == (0, "1 stored already\n")
    done = client("-m", "samovar", "segment", str(photo), *box)
    assert done.returncode == 1
    assert "the package torch" in done.stderr
