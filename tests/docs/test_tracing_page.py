"""docs/tracing.md says what is true: what it builds is there, and what it lists is what there is."""

from __future__ import annotations

import re
import tomllib

from tests.deploy.compose import ROOT, load_compose
from tests.docs.snippets import DOCS, snippets

PAGE = "tracing.md"
TEXT = (DOCS / PAGE).read_text()
_NAMED = re.compile(r'(?<![\w.])(?:span|record)\(\s*f?"([^"]+)"')


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
