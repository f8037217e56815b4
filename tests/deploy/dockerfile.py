"""Reads what our Dockerfiles say about the image that comes out of them."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.compose import ROOT

SERVICES = ("encoder_service", "decoder_service", "gateway")


@dataclass
class Image:
    """An image, or a stage on the way to it.

    Attributes:
        copies: what is copied from the build context, as (sources, destination).
        environment: its variables.
        settings: the last value of every other instruction, by name.
    """

    copies: list[tuple[list[str], str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """What the container runs; only the exec form gets the signals."""
        return _exec_form(self.settings["CMD"])

    @property
    def healthcheck(self) -> list[str]:
        """What Docker runs to see whether it is healthy."""
        return _exec_form(self.settings["HEALTHCHECK"].split("CMD", 1)[1])

    @property
    def healthcheck_options(self) -> dict[str, str]:
        """How often, how long: `{"interval": "10s", ...}`."""
        return dict(re.findall(r"--([a-z-]+)=(\S+)", self.settings["HEALTHCHECK"]))


@dataclass
class Dockerfile:
    """A Dockerfile: its stages, the last of which is the image, and its arguments."""

    stages: list[Image] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    @property
    def image(self) -> Image:
        """What comes out of it."""
        return self.stages[-1]

    @property
    def copied(self) -> list[str]:
        """Everything that any stage takes from the build context."""
        return [source for stage in self.stages for sources, _ in stage.copies for source in sources]


def read_dockerfile(service: str) -> Dockerfile:
    """Return the Dockerfile of a service."""
    read = Dockerfile()
    text = (ROOT / service / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for instruction in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, _, rest = instruction.partition(" ")
        _apply(read, name, rest.strip())
    return read


def _apply(read: Dockerfile, name: str, rest: str) -> None:
    if name == "FROM":
        read.stages.append(Image())
    elif name == "ARG":
        read.arguments |= {key: value for key, _, value in (word.partition("=") for word in rest.split())}
    elif name == "ENV":
        read.image.environment |= {key: value for key, _, value in (word.partition("=") for word in shlex.split(rest))}
    elif name == "COPY" and not rest.startswith("--from"):
        *sources, destination = rest.split()
        read.image.copies.append((sources, destination))
    elif name == "RUN":
        read.runs.append(rest)
    elif read.stages:
        read.image.settings[name] = rest


def _exec_form(text: str) -> list[str]:
    words: Any = json.loads(text)
    assert isinstance(words, list)
    return [str(word) for word in words]
