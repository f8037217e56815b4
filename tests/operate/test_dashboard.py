"""The Grafana dashboard: whole, legible, and made of queries that Prometheus can read."""

from __future__ import annotations

import itertools
from pathlib import Path

import yaml

from tests.operate.promtool import needs_promtool, promtool
from tests.operate.watching import dashboard, panels, queries


@needs_promtool
def test_every_query_can_be_read(tmp_path: Path) -> None:
    """Prometheus parses every query of the dashboard."""
    rules = [{"record": f"query_{number}", "expr": expr} for number, (_, expr) in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_every_panel_says_what_it_shows() -> None:
    """A panel has a title of its own within its row, a sentence, a unit, and queries of the chosen data source."""
    (variable,) = dashboard()["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("datasource", "datasource")
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_do_not_overlap() -> None:
    """Every panel has a place of its own on Grafana's grid of 24 columns."""
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
