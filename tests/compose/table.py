"""The table of a run: what was done to the containers, the figure required, and the figure seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_START, _END = "<!-- run -->\n", "<!-- /run -->"
COLUMNS = ("what was done", "required", "seen", "held")


@dataclass(frozen=True)
class Row:
    """One promise put to the test.

    Attributes:
        done: what was done to the containers.
        required: the figure that must be reached.
        seen: the figure of this run.
        held: whether it was reached.
    """

    done: str
    required: str
    seen: str
    held: bool

    def cells(self) -> tuple[str, ...]:
        """Return the row's texts, in the order of the columns."""
        return (self.done, self.required, self.seen, "yes" if self.held else "no")


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(row.cells()) + " |" for row in rows)])


def write_into(document: Path, rows: Sequence[Row], note: str) -> None:
    """Replace the table of a Markdown document, which stands between two comments; `note` is written above it.

    Raises:
        ValueError: the document has no place for a table.
    """
    before, start, rest = document.read_text().partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise ValueError(f"{document} has no {_START.strip()} ... {_END}")
    document.write_text(f"{before}{start}{note}\n\n{as_markdown(rows)}\n{end}{after}")
