"""The compiled code, for tests that need it."""

from __future__ import annotations

import pytest

from decoder_service.fused.library import SOURCES
from sam.compiled.library import Isa, Library, LibraryMissing

CODES = ("numpy", "compiled")
"""What scales and encodes masks."""


def compiled(isa: Isa | None = None) -> Library:
    """Return the compiled code; the test is skipped where it cannot run."""
    try:
        return SOURCES.load(isa)
    except LibraryMissing as error:
        pytest.skip(str(error))


def library_of(code: str) -> Library | None:
    """Return the library that makes one of `CODES` run."""
    return compiled() if code == "compiled" else None
