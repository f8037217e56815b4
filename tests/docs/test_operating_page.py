"""docs/operating.md says what is true: its commands run, and what it names exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from decoder_service.settings import DecoderSettings
from encoder_service.settings import EncoderSettings
from gateway.settings import GatewaySettings
from sam.errors import leaves
from tests.deploy.compose import ROOT, load_compose, variables_used
from tests.docs.snippets import DOCS, at, run, snippets
from tests.faults.deployment import stub
from tests.integration.processes import service
from tests.photographs import photograph
from tools import metrics_reference

PAGE = "operating.md"
TEXT = (DOCS / PAGE).read_text()
DOCKER, RUN = "with Docker", ""

# What the page uses of `docker compose`, by command: options without a value, and those with one.
OPTIONS: dict[str, tuple[set[str], set[str]]] = {
    "up": ({"-d", "--no-deps", "--no-recreate", "--wait"}, {"--scale"}),
    "ps": ({"-q", "--all"}, set()),
    "logs": ({"--no-log-prefix"}, {"--tail"}),
    "build": (set(), set()),
    "restart": (set(), set()),
    "down": (set(), set()),
}


def test_every_command_runs_as_printed(tmp_path: Path) -> None:
    """From a folder with a photograph, each block that names no container does what the page says."""
    (tmp_path / "photo.jpg").write_bytes(photograph().read_bytes())
    blocks = [snippet for snippet in snippets(PAGE) if snippet.marker == RUN]
    assert len(blocks) >= 4
    with service("samovar", tmp_path, stub(encode_s=0.01), arguments=("serve",)) as server:
        for block in blocks:
            run(at(block.text, server.port), block.language, tmp_path)
    assert '"masks"' in (tmp_path / "answer.json").read_text()


def compose_commands() -> Iterator[tuple[dict[str, str], list[str]]]:
    """Return the variables and the words of every `docker compose` command of the page."""
    for snippet in snippets(PAGE):
        if snippet.marker == DOCKER:
            for before, command in re.findall(r"^(.*?)docker compose ([^|)\n]*)", snippet.text, re.MULTILINE):
                yield dict(re.findall(r"([A-Z_]+)=(\S+)", before)), shlex.split(command)
    # In the text, too.
    yield from (({}, shlex.split(command)) for command in re.findall(r"`docker compose ([^`]*)`", TEXT))


@pytest.mark.parametrize(("variables", "words"), list(compose_commands()), ids=lambda part: " ".join(part) or "plain")
def test_commands_for_docker_name_what_is_there(variables: dict[str, str], words: list[str]) -> None:
    """Profiles, services and variables are those of the compose file, and commands and options those of Docker."""
    services = load_compose()["services"]
    assert set(variables) <= variables_used()
    words = list(words)
    while words[0].startswith("--"):
        option, value = words.pop(0), words.pop(0)
        assert option in {"--profile", "--project-name"}
        if option == "--profile":
            assert any(value in service.get("profiles", ()) for service in services.values())
    plain, valued = OPTIONS[words.pop(0)]
    while words:
        word = words.pop(0)
        if word in valued:
            value = words.pop(0)
            assert (value.partition("=")[0] in services) if word == "--scale" else value.isdecimal()
        else:
            assert word in plain or word in services, word


def test_every_block_is_one_of_both() -> None:
    """A block is run here, or it is for Docker and nothing else."""
    for snippet in snippets(PAGE):
        assert snippet.language == "sh"
        assert snippet.marker in {RUN, DOCKER}, snippet
        assert ("docker " in snippet.text) == (snippet.marker == DOCKER), snippet


def test_the_table_of_metrics_is_the_codes() -> None:
    """The table is what `make docs` writes."""
    assert metrics_reference.render(TEXT) == TEXT, "run 'make docs'"


def test_what_the_page_names_exists() -> None:
    """Settings, variables, reasons, files and targets are those of the project."""
    fields = (EncoderSettings.model_fields, DecoderSettings.model_fields, GatewaySettings.model_fields)
    settings = {name for one in fields for name in one}
    prefixes = ("encoder_", "decoder_", "gateway_", "url_", "key_", "bodies_", "redis_", "drain_", "metrics_")
    bounds = explained_bounds()
    named = {name for name in re.findall(r"`([a-z]+_[a-z_]+)`", TEXT) if name.startswith(prefixes)} - bounds
    assert len(named) > 8
    assert named <= settings, named - settings
    assert {f"--{name.replace('_', '-')}" for name in settings} >= set(re.findall(r"`(--metrics-port)`", TEXT))
    variables = {name for name in re.findall(r"`([A-Z_]{6,})`", TEXT) if not name.startswith("SAMOVAR_")}
    assert variables <= variables_used() | {leaf.reason for leaf in leaves()}
    for target in re.findall(r"`make ([a-z-]+)`", TEXT):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for file in re.findall(r"`(deploy/[a-z/.]+)`", TEXT):
        assert (ROOT / file).exists(), file


def explained_bounds() -> set[str]:
    """Return the bounds that the page has a line for."""
    table = TEXT.partition("| bound |")[2].partition("\n\n")[0]
    return set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))


def test_links_lead_somewhere() -> None:
    """Every relative link names a file or folder of the project, every anchor a heading of its page."""
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower() for line in TEXT.splitlines() if line.startswith("#")}
    anchors = {heading.replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        file, _, anchor = target.partition("#")
        assert (DOCS / file).exists(), target
        assert not anchor or anchor in anchors, target
