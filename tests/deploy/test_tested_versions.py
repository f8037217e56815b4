"""The versions that a server can be pinned to."""

from __future__ import annotations

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.compose import ROOT

FILE = ROOT / "deploy" / "tested-versions.txt"
NOT_SERVED = {"dev"}


def test_everything_that_a_server_asks_for_is_pinned_within_its_bounds() -> None:
    """Each requirement of pyproject.toml but the developers' has a tested version, which its bounds allow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in extras.keys() - NOT_SERVED for text in extras[name])]
    pinned = dict(line.split("==") for line in FILE.read_text().splitlines() if line and line[0] != "#")
    for requirement in map(Requirement, texts):
        if requirement.name == "samovar":
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is missing: run python -m tools.tested_versions"
        assert requirement.specifier.contains(Version(pinned[name])), (str(requirement), pinned[name])
