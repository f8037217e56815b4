"""Spans as the rest of the code writes them. Knows nothing of OpenTelemetry.

A span's name is that of a step, never of a picture, a user or an address; its attributes hold no API key, no content,
no URL and no text of an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

Attribute: TypeAlias = str | int | float | bool
Kind = Literal["internal", "server", "client"]
Carrier: TypeAlias = Mapping[str, str]
"""Headers or metadata, the names in lower case."""


class Span(Protocol):
    """A step that is being taken."""

    def set(self, **attributes: Attribute) -> None:
        """Say more about it. In a name, `__` stands for a dot."""

    def rename(self, name: str) -> None:
        """Name it by what is known only now."""

    def conclude(self, failure: str | None) -> None:
        """Say how it ended, whatever is raised out of it: a word from a small set, or None for well."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers by which another service makes its part of the request a part of this step."""


class Tracer(Protocol):
    """Where spans go."""

    def span(
        self, name: str, kind: Kind, attributes: Mapping[str, Attribute], parent: Carrier | None, around: bool
    ) -> AbstractContextManager[Span]:
        """See `span`."""

    def record(self, name: str, started: float, ended: float, attributes: Mapping[str, Attribute]) -> None:
        """See `record`."""

    def current(self) -> Span | None:
        """Return the span around the caller, if there is one that is recorded."""

    def trace_id(self) -> str | None:
        """See `trace_id`."""

    def stop(self) -> None:
        """Send what has not been sent, for a bounded time."""


class _NoSpan:
    """Stands where a span would."""

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        return None

    def set(self, **attributes: Attribute) -> None:
        """Say nothing."""

    def rename(self, name: str) -> None:
        """Say nothing."""

    def conclude(self, failure: str | None) -> None:
        """Say nothing."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return none."""
        return ()


_NO_SPAN = _NoSpan()
_tracer: Tracer | None = None


def use_tracer(tracer: Tracer | None) -> None:
    """Send the spans of this process there from now on; None: nowhere."""
    global _tracer
    _tracer = tracer


def current_tracer() -> Tracer | None:
    """Return where the spans of this process go; None: nowhere."""
    return _tracer


def is_tracing() -> bool:
    """Return whether spans go anywhere. Asked where a layer is put in for tracing alone."""
    return _tracer is not None


def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: Carrier | None = None,
    around: bool = True,
    **attributes: Attribute,
) -> AbstractContextManager[Span]:
    """Return a block that is a step of the request; what is raised out of it marks the step as failed.

    Only a request from outside begins a trace: what happens outside of any is not written down.

    Args:
        name: the step.
        kind: `server` where a request comes in, `client` where one goes out.
        parent: the headers of an incoming request, which may name the caller's span. None: the step around this one.
        around: whether steps within the block are parts of this one. Not in a generator: between two values, whoever
            iterates over it would be taken for a part of it.
        attributes: more about it. In a name, `__` stands for a dot.
    """
    return _NO_SPAN if _tracer is None else _tracer.span(name, kind, attributes, parent, around)


def record(name: str, started: float, ended: float, **attributes: Attribute) -> None:
    """Write down a step that has been measured already, within the step around the caller.

    Args:
        name: the step.
        started: when it began, in seconds of the monotonic clock.
        ended: when it ended, on the same clock.
        attributes: more about it. In a name, `__` stands for a dot.
    """
    if _tracer is not None:
        _tracer.record(name, started, ended, attributes)


def annotate(**attributes: Attribute) -> None:
    """Say more about the step around the caller."""
    if _tracer is not None and (current := _tracer.current()) is not None:
        current.set(**attributes)


def trace_id() -> str | None:
    """Return the trace that the caller is part of, 32 hexadecimal digits; None if there is none."""
    return None if _tracer is None else _tracer.trace_id()
