"""Which version runs."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """Return the version of the installed distribution; a checkout that was not installed has none."""
    try:
        return metadata.version("samovar")
    except metadata.PackageNotFoundError:
        return "0+unknown"
