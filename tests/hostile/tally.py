"""What was tried, and what came of it, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

COLUMNS = ("what was tried", "inputs", "refused", "accepted", "5xx or crashes", "seen besides")

_SAID_ACCEPTED = "accepted"
_OURS = frozenset({"INTERNAL", "UNKNOWN", "crash"})


@dataclass
class Tally:
    """The inputs of one kind.

    Attributes:
        what: what they were, and where they were sent.
        outcomes: how often each outcome was seen: `accepted`, the reason of a refusal, a status, or a fault of ours.
        remark: what else was measured.
    """

    what: str
    outcomes: Counter[str] = field(default_factory=Counter)
    remark: str = ""

    def accept(self) -> None:
        """Count an input that was answered."""
        self.outcomes[_SAID_ACCEPTED] += 1

    def refuse(self, reason: str) -> None:
        """Count an input that was refused for a reason; one that is a fault of ours is counted as that."""
        self.outcomes[reason] += 1

    def count_status(self, status: int) -> None:
        """Count an answer over HTTP."""
        if status < 400:
            self.accept()
        else:
            self.refuse(str(status))

    @property
    def tried(self) -> int:
        """All inputs."""
        return self.outcomes.total()

    @property
    def accepted(self) -> int:
        """Those that were answered."""
        return self.outcomes[_SAID_ACCEPTED]

    @property
    def faults(self) -> int:
        """Those that brought about a fault of ours: a 5xx but for the overload of a service, or a crash."""
        return sum(count for outcome, count in self.outcomes.items() if outcome in _OURS or outcome.startswith("5"))

    def cells(self) -> tuple[str, ...]:
        """Return the row's texts, in the order of the columns."""
        reasons = ", ".join(
            f"{reason} {count}"
            for reason, count in sorted(self.outcomes.items(), key=lambda pair: -pair[1])
            if reason != _SAID_ACCEPTED
        )
        refused = self.tried - self.accepted - self.faults
        seen = "; ".join(filter(None, (reasons, self.remark)))
        return (self.what, f"{self.tried:,}", f"{refused:,}", f"{self.accepted:,}", str(self.faults), seen)


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum, without the reasons."""
    out = Tally("all of it")
    for tally in tallies:
        out.outcomes += tally.outcomes
    return out


def rows_of(tallies: Sequence[Tally]) -> list[tuple[str, ...]]:
    """Return the table's rows, the sum last."""
    last = total(tallies).cells()
    return [tally.cells() for tally in tallies] + [(*last[:5], "")]


def as_markdown(tallies: Sequence[Tally]) -> str:
    """Return the table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(
        [*lines, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows_of(tallies))]
    )
