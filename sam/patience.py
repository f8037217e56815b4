"""How long a call waits for the store: once for all services that take part in one request.

A store that stalls costs whoever finds out one time-out. A request may pass through three processes, one after another,
that have not found out yet. So the first says so, and the others then ask the store for a sign of life before anything
else, and wait for that a small part of the time only.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Literal

SIGN_OF_LIFE_SHARE = 0.05
"""How much of a command's time-out the store has for its sign of life."""

_State = Literal["in doubt", "alive", "lost"]


class Doubt:
    """What one call knows of the store, after its request has waited for it in vain at another process.

    Attributes:
        state: `in doubt` until the store was asked, and then what came of it.
    """

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: _State = "in doubt"


_doubt: ContextVar[Doubt | None] = ContextVar("_doubt", default=None)


def begin_to_doubt() -> None:
    """Note that the request of this call has waited for the store in vain elsewhere."""
    _doubt.set(Doubt())


def doubt() -> Doubt | None:
    """Return the doubt of this call; None if there is none, or none any more."""
    current = _doubt.get()
    return None if current is None or current.state == "alive" else current
