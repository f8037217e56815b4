"""The rules of deploy/observability/: valid, tried out, and each with a page that says what to do."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.deploy.compose import load_compose
from tests.operate.promtool import ROOT, needs_promtool, promtool
from tests.operate.watching import ALERT_TESTS, ALERTS, FOLDER, PROMETHEUS, alerts

RULES = alerts()
NAMES = [rule["alert"] for rule in RULES]


@needs_promtool
def test_the_configuration_and_its_rules_are_valid() -> None:
    """Prometheus accepts both files."""
    assert f"{len(RULES)} rules found" in promtool("check", "config", str(PROMETHEUS))


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before() -> None:
    """The alerts pass their unit tests."""
    assert "SUCCESS" in promtool("test", "rules", ALERT_TESTS.name, folder=FOLDER)


def test_every_alert_is_tried_both_ways() -> None:
    """For each alert there is a test in which it fires, and one in which all is well and it does not."""
    tried = [case for group in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for case in group["alert_rule_test"]]
    assert {case["alertname"] for case in tried if case.get("exp_alerts")} == set(NAMES)
    assert {case["alertname"] for case in tried if not case.get("exp_alerts")} == set(NAMES)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    """An alert has a severity, a summary, a description, and a section of the page that its link leads to."""
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert rule["alert"] in headings
    assert anchor == str(rule["alert"]).lower()


def test_every_section_of_the_page_is_an_alert() -> None:
    """docs/operating.md tells of no alert that there is not."""
    page = (ROOT / "docs" / "operating.md").read_text()
    assert re.findall(r"^### (Samovar\w+)$", page, re.MULTILINE) == NAMES


def test_all_services_of_the_compose_file_are_scraped() -> None:
    """Every replica of each service is found by the name that it has in the compose file, on the port of its image."""
    jobs = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    found = {job["job_name"]: job["dns_sd_configs"] for job in jobs if job["job_name"] != "prometheus"}
    assert set(found) == {"gateway", "encoder", "decoder"} <= set(load_compose()["services"])
    for name, (source,) in found.items():
        assert (source["names"], source["type"], source["port"]) == ([name], "A", 9464)


def test_the_compose_file_mounts_what_is_there() -> None:
    """Prometheus and Grafana get the files of deploy/observability/ where they look for them."""
    services = load_compose()["services"]
    mounts = [volume.split(":") for name in ("prometheus", "grafana") for volume in services[name]["volumes"]]
    files = {source: target for source, target, *mode in mounts if source.startswith("./") and mode == ["ro"]}
    assert files.pop("./deploy/observability/prometheus.yml") == "/etc/prometheus/prometheus.yml"
    assert files.pop("./deploy/observability/alerts.yml") == f"/etc/prometheus/{ALERTS.name}"
    assert all((ROOT / source).is_dir() for source in files)
    provider = yaml.safe_load((FOLDER / "grafana" / "provisioning" / "dashboards" / "samovar.yml").read_text())
    assert provider["providers"][0]["options"]["path"] in files.values()
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{files['./deploy/observability/grafana/dashboards']}/samovar.json"
    source = yaml.safe_load((FOLDER / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
