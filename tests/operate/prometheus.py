"""A real Prometheus of the test's own, with our configuration in front of replicas that the test has started."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.conftest import free_port
from tests.operate.promtool import find
from tests.operate.watching import ALERTS, PROMETHEUS

START_S = 60.0
SCRAPE_S = 1


@dataclass
class Prometheus:
    """A running Prometheus."""

    http: httpx2.Client

    def targets(self) -> dict[str, list[str]]:
        """Return the health of every target, by job."""
        found: dict[str, list[str]] = {}
        for target in self._ask("targets")["activeTargets"]:
            found.setdefault(target["labels"]["job"], []).append(target["health"])
        return found

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression evaluates to now."""
        data = self._ask("query", query=expression)
        # A scalar is one value without labels.
        result: list[dict[str, Any]] = data["result"] if data["resultType"] == "vector" else [{"value": data["result"]}]
        return result

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {one["labels"]["alertname"] for one in self._ask("alerts")["alerts"] if one["state"] == "firing"}

    def _ask(self, what: str, **parameters: str) -> dict[str, Any]:
        data: dict[str, Any] = self.http.get(f"/api/v1/{what}", params=parameters).raise_for_status().json()["data"]
        return data


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, list[str]]) -> Iterator[Prometheus]:
    """Run Prometheus with deploy/observability/, but for where the replicas are and how long it waits.

    Args:
        folder: for its files.
        targets: the replicas of each job, as host:port, in place of what DNS would tell.
    """
    port = free_port()
    configuration = yaml.safe_load(PROMETHEUS.read_text())
    configuration["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    for job in configuration["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": targets.get(job["job_name"], [f"127.0.0.1:{port}"])}]
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in rules["groups"][0]["rules"]:
        # How long a state has to last is told by the unit tests.
        rule.pop("for", None)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (folder / ALERTS.name).write_text(yaml.safe_dump(rules))
    program = find("prometheus")
    assert program is not None
    arguments = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    log = folder / "prometheus.log"
    with log.open("wb") as output, httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        process = subprocess.Popen(
            [program, *(f"--{name}={value}" for name, value in arguments.items())], stdout=output, stderr=output
        )
        try:
            _wait_until_ready(http, process, log)
            yield Prometheus(http)
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(http: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            if http.get("/-/ready").status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
