"""How the work was shared: read from what each replica itself has logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Moments = Mapping[str, Sequence[float]]
"""For each replica, when it did a piece of work, in seconds."""


def shares(moments: Moments, since: float, until: float) -> dict[str, float]:
    """Return each replica's part, from 0 to 1, of what was done after `since` and not after `until`."""
    counts = {name: sum(since < at <= until for at in times) for name, times in moments.items()}
    total = sum(counts.values())
    return {name: count / total if total else 0.0 for name, count in counts.items()}


def balanced_after(
    moments: Moments, since: float, *, low: float, high: float, window_s: float, until: float
) -> float | None:
    """Return how long after `since` every replica's part was between `low` and `high`, in seconds.

    Args:
        moments: when each replica did a piece of work.
        since: from when on it is counted.
        low: the least part that counts as balanced.
        high: the greatest.
        window_s: over how many seconds before each moment the parts are taken. It may begin before `since`.
        until: where to stop.

    Returns:
        The seconds from `since` to the end of the first such window; None if there is none.
    """
    step = 0.25
    for number in range(int((until - since) / step) + 1):
        at = since + number * step
        parts = shares(moments, at - window_s, at).values()
        if parts and all(low <= part <= high for part in parts):
            return at - since
    return None


def told(parts: Mapping[str, float]) -> str:
    """Return parts as percentages, in the order of the replicas' names."""
    return "/".join(f"{100 * parts[name]:.0f}" for name in sorted(parts)) + " %"
