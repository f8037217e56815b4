"""The table of a run: what was injected, what was counted, what was required and what was seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_COLUMNS = ("fault", "injected", "counted", "required", "seen", "held")


@dataclass(frozen=True)
class Row:
    """One promise put to the test.

    Attributes:
        fault: its number in the catalogue, such as `F7`.
        injected: what was done to the services.
        counted: what was measured, over how many requests.
        required: the figure that must be reached.
        seen: the figure of this run.
        held: whether it was reached.
    """

    fault: str
    injected: str
    counted: str
    required: str
    seen: str
    held: bool

    def cells(self) -> tuple[str, ...]:
        """Return the row's texts, in the order of the columns."""
        return (self.fault, self.injected, self.counted, self.required, self.seen, "yes" if self.held else "**no**")


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the table, the faults in the order of their numbers."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row.cells()) + " |" for row in in_order(rows)]
    return "\n".join(lines)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows by the number of their fault; those without one last."""

    def number(row: Row) -> tuple[int, str]:
        found = re.search(r"\d+", row.fault)
        return (int(found[0]) if found and row.fault.startswith("F") else 1000, row.fault)

    return sorted(rows, key=number)


def write_into(document: Path, section: str, rows: Sequence[Row], note: str) -> None:
    """Replace the table of a Markdown document's section, between two comments of its name; `note` stands above it.

    Raises:
        ValueError: the document has no place for a table.
    """
    write_section(document, section, f"{note}\n\n{as_markdown(rows)}\n")


def write_section(document: Path, section: str, content: str) -> None:
    """Replace what stands between two comments of a Markdown document, `<!-- section -->` and `<!-- /section -->`.

    Raises:
        ValueError: the document has no such place.
    """
    text = document.read_text()
    before, start, rest = text.partition(f"<!-- {section} -->\n")
    _, end, after = rest.partition(f"<!-- /{section} -->")
    if not start or not end:
        raise ValueError(f"{document} has no place for the table of {section}")
    document.write_text(f"{before}{start}{content}{end}{after}")
