"""Writes deploy/tested-versions.txt: `python -m tools.tested_versions`, run where the tests have just passed.

A constraints file for pip with the version of everything that a server installs. pyproject.toml has the lower bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FILE = Path(__file__).resolve().parent.parent / "deploy" / "tested-versions.txt"
_HEAD = """\
# The versions that the tests last passed with, of everything that a server installs. For pip, beside pyproject.toml's
# lower bounds: make serve PIP_ARGS="-c deploy/tested-versions.txt". Written by python -m tools.tested_versions.
"""


def installed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[tuple[str, str]]:
    """Yield name and version of what a package needs, and of what that needs, as installed here."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        needed = canonicalize_name(requirement.name)
        try:
            version = Version(metadata.version(needed))
        except metadata.PackageNotFoundError:
            # For another system or Python.
            continue
        if needed != "samovar":
            # Without the build, such as +cpu: that is chosen elsewhere.
            yield needed, version.public
        yield from installed(needed, frozenset(requirement.extras) | {""}, seen)


def main() -> None:
    """Write the file."""
    found = sorted(set(installed("samovar", frozenset({"all", "tracing", ""}), set())))
    FILE.write_text(_HEAD + "".join(f"{name}=={version}\n" for name, version in found))


if __name__ == "__main__":
    main()
