"""What OpenTelemetry complains about, said seldom: it repeats itself while a collector is away."""

from __future__ import annotations

import logging
import time
from contextvars import copy_context

REPEAT_S = 600.0
"""How long one kind of complaint is not repeated."""


def say_seldom(logger_name: str) -> None:
    """Let what is logged below a logger of the standard library through to the root's handlers once in a while."""
    logger = logging.getLogger(logger_name)
    logger.handlers = [_Seldom(handler) for handler in logging.getLogger().handlers]
    logger.propagate = False


class _Seldom(logging.Handler):
    """Hands a record on unless one like it was a short while ago."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__(handler.level)
        self._handler = handler
        self._said: dict[object, float] = {}
        # Exporters log in threads of their own, which do not know the service's name.
        self._context = copy_context()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        # Before what is filled into it: addresses and pauses differ each time.
        kind, now = record.msg, time.monotonic()
        if now - self._said.get(kind, -REPEAT_S) >= REPEAT_S:
            self._said[kind] = now
            self._context.copy().run(self._handler.handle, record)
