"""docs/tracing.md says what is true: its commands run, and what it lists is what there is."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT, load_compose
from tests.docs.snippets import DOCS, Snippet, at, run, snippets
from tests.faults.deployment import stub
from tests.integration.processes import service
from tests.operate.collector import Collector, http_collector

PAGE = "tracing.md"
TEXT = (DOCS / PAGE).read_text()
_NAMED = re.compile(r'(?<![\w.])(?:span|record)\(\s*f?"([^"]+)"')


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
    model = {"SAMOVAR_CHECKPOINT": "random:0", "SAMOVAR_LOG_FORMAT": stub()["SAMOVAR_LOG_FORMAT"]}
    with service("samovar", folder, {**model, **variables}, arguments=("serve", *arguments)) as server:
        run(at(ask.text, server.port), ask.language, folder)
        assert server.stop() == 0
        return server.log.read_text()


def test_what_the_page_installs_and_builds_exists() -> None:
    """The extra, the build argument and the compose file that the page names are those of the project."""
    (installs,) = [snippet for snippet in snippets(PAGE) if snippet.marker == "installs"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert installs.text == "pip install 'samovar[tracing]'\n"
    assert "tracing" in extras
    (docker,) = [snippet for snippet in snippets(PAGE) if snippet.marker == "with Docker"]
    files = re.findall(r"-f (\S+)", docker.text)
    assert files == ["docker-compose.yml", "docker-compose.tracing.yml"]
    assert load_compose(files[1])["services"]["jaeger"]["ports"] == ["127.0.0.1:16686:16686"]
    for folder in re.findall(r"<http://localhost:(\d+)>", TEXT):
        assert folder == "16686"


def test_the_table_of_spans_is_that_of_the_code() -> None:
    """Every span that the code writes has a line, and every line is of one that it writes."""
    packages = ("sam", "gateway", "encoder_service", "decoder_service")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    written = {name for file in files for name in _NAMED.findall(file.read_text())}
    written = {"store COMMAND RECORD" if name.startswith("store {") else name for name in written}
    # Those whose names are put together from what is asked.
    written |= {"METHOD /route", "sam.v1.SERVICE/METHOD"}
    table = TEXT.partition("| span | where |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == written


def test_the_attributes_are_those_of_the_code() -> None:
    """The page names every attribute that is ours, and no other."""
    packages = ("sam", "gateway", "encoder_service", "decoder_service")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    written = {name for file in files for name in re.findall(r"\bsamovar__(\w+)=", file.read_text())}
    named = set(re.findall(r"`samovar\.([a-z_.]+)`", TEXT))
    assert {name.replace("__", ".") for name in written} == named
