"""docs/demo.md and its pictures."""

from __future__ import annotations

import re

from tests.integration.processes import ROOT

DOCS = ROOT / "docs"


def test_the_pictures_are_there_and_small() -> None:
    """Every picture that the account shows exists and has less than 200 KiB, and none lies there unused."""
    shown = re.findall(r"!\[[^\]]+\]\((images/[^)]+)\)", (DOCS / "demo.md").read_text())
    assert len(shown) >= 5
    assert all((DOCS / name).stat().st_size < 200 * 1024 for name in shown)
    assert {f"images/{file.name}" for file in (DOCS / "images").glob("demo-*")} == set(shown)
