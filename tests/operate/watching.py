"""What deploy/observability/ holds: alerts, the dashboard, and which metrics they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.operate.promtool import ROOT

FOLDER = ROOT / "deploy" / "observability"
ALERTS, ALERT_TESTS, PROMETHEUS = (FOLDER / name for name in ("alerts.yml", "alerts.test.yml", "prometheus.yml"))
DASHBOARD = FOLDER / "grafana" / "dashboards" / "samovar.json"

_NAME = re.compile(r"\b(?:samovar|grpc_server|process|python)_[a-z0-9_]+")
_LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right) *\([^)]*\)|\{[^}]*\}")


def alerts() -> list[dict[str, Any]]:
    """Return every alert's rule."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Return the title of a panel and a query, for each query of the dashboard, as Prometheus takes it."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics that a query asks for; parts of histograms under the histogram's."""
    names = set(_NAME.findall(_LABELS.sub("", expression)))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
