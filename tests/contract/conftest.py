"""The gateway under test: one stack for the session, clean for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.stack import Stack, running_stack


@pytest.fixture(scope="session")
def _session_stack() -> Iterator[Stack]:
    with running_stack() as stack:
        yield stack


@pytest.fixture
def stack(_session_stack: Stack) -> Stack:
    """A running gateway and its fakes, as if freshly started."""
    _session_stack.reset()
    return _session_stack
