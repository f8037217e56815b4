"""Reads the compose files as `docker compose` does: variables filled in, overrides merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

_VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


def load_compose(*overrides: str, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return `docker-compose.yml` with the files of `overrides` merged into it."""
    merged: dict[str, Any] = {}
    for name in ("docker-compose.yml", *overrides):
        merged = _merge(merged, _filled_in(yaml.safe_load((ROOT / name).read_text()), variables or {}))
    return merged


def variables_used(name: str = "docker-compose.yml") -> set[str]:
    """Return the names of the variables that a compose file fills in."""
    lines = (line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#"))
    return {match[1] for line in lines for match in _VARIABLE.finditer(line)}


def _filled_in(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled_in(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled_in(value, variables) for value in node]
    if isinstance(node, str):
        text = _VARIABLE.sub(lambda match: variables.get(match[1]) or match[2], node)
        assert "$" not in text, f"only ${{NAME:-default}} is used in these files, not {node}"
        return text
    return node


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: _merge(base[key], value) if key in base else value for key, value in over.items()}
    return over
