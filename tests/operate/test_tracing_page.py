"""docs/tracing.md, followed from its beginning."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from tests.docs.snippets import Snippet, at, run, snippets
from tests.integration.processes import service
from tests.operate.collector import Collector, http_collector

PAGE = "tracing.md"


@pytest.mark.operate
def test_every_command_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server starts as printed, and what is asked of it is found as spans: on the terminal, and at a collector."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    starts = [snippet for snippet in snippets(PAGE) if snippet.marker == "starts the server"]
    (ask,) = [snippet for snippet in snippets(PAGE) if not snippet.marker]
    with http_collector() as collector:
        for snippet in starts:
            written = _follow(snippet, ask, tmp_path, collector)
            if "console" in snippet.text:
                assert '"name": "GET /model/registry"' in written
        assert "localhost:4318" in starts[-1].text
        collector.wait_for(lambda: "sam.v1.DecoderService/GetModel" in {span.name for span in collector.spans})


def _follow(start: Snippet, ask: Snippet, folder: Path, collector: Collector) -> str:
    """Start what a block starts, with a model that costs nothing, ask, stop, and return what was written."""
    words = shlex.split(start.text.replace("http://localhost:4318", collector.endpoint))
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    program, command, *arguments = words[len(variables) :]
    assert (program, command, arguments) == ("samovar", "serve", ["--model", "starter"])
    model = {"SAMOVAR_CHECKPOINT": "random:0", "SAMOVAR_LOG_FORMAT": "json"}
    with service("samovar", folder, {**model, **variables}, arguments=("serve", *arguments)) as server:
        run(at(ask.text, server.port), ask.language, folder)
        assert server.stop() == 0
        return server.log.read_text()
