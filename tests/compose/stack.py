"""The project's compose file, up and running: brought up in its own order, scaled, and robbed of containers."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.compose.engine import CommandFailed, Engine
from tests.compose.images import without_proxies
from tests.conftest import free_port
from tests.deploy.compose import ROOT, load_compose

PROJECT = "samovar-compose-test"
HEALTHY_WITHIN_S = 300.0
"""Most of a start is reading torch from disk, by several replicas at once."""

# Redis, a gateway, four decoders and two encoders.
_CONTAINERS_AT_MOST = 8
_NUMBER = re.compile(r"_(\d+)$")


class Stack:
    """The containers of one `up`.

    Attributes:
        url: where the gateway is published.
        services: the compose file's services, its variables filled in.
        pause: sleeps, unless the run is to stop.
    """

    def __init__(self, engine: Engine, **variables: str) -> None:
        """Say how it is to be run; nothing runs yet.

        Args:
            engine: what runs it.
            variables: the compose file's variables, such as `SAMOVAR_CHECKPOINT`.
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._engine = engine
        self.pause = engine.pause
        settings = dict.fromkeys((name for name in os.environ if name.startswith("SAMOVAR_")), "")
        self._variables = {**without_proxies(), **settings, "PUBLISH": f"127.0.0.1:{port}", **variables}
        services: dict[str, dict[str, Any]] = load_compose(variables=self._variables)["services"]
        # What a profile adds is not brought up without it.
        self.services = {name: service for name, service in services.items() if "profiles" not in service}
        self._logs_of_removed: dict[str, str] = {}

    def up(self) -> None:
        """Start every service once those that it depends on are as the compose file asks.

        podman older than 4.6 cannot wait for health, so the order is kept here.

        Raises:
            CommandFailed: one does not start, or not become what others wait for.
        """
        waiting = dict(self.services)
        while waiting:
            ready = [name for name, service in waiting.items() if not waiting.keys() & service.get("depends_on", {})]
            self._compose("up", "--detach", "--no-build", "--no-deps", *ready)
            self._engine.weigh_containers(_CONTAINERS_AT_MOST)
            for name in ready:
                del waiting[name]
            for name in ready:
                if self.services[name]["restart"] == "no":
                    self._wait_for_end(self.containers(name)[0])
                else:
                    self.wait_healthy(*self.containers(name))

    def down(self) -> None:
        """Stop and remove it all."""
        self._compose("down", "--volumes", "--timeout", str(self._grace_s("gateway")))

    def containers(self, service: str) -> list[str]:
        """Return the names of a service's containers, by their numbers."""
        label = f"label=com.docker.compose.service={service}"
        names = self._engine.podman("ps", "--all", "--filter", label, "--format", "{{.Names}}").split()
        return sorted(names, key=_number)

    def add(self, service: str, count: int) -> list[str]:
        """Scale a service up to `count` replicas; return the new containers, which have been started."""
        before = self.containers(service)
        scale = ("--scale", f"{service}={count}")
        self._compose("up", "--detach", "--no-build", "--no-deps", "--no-recreate", *scale, service)
        return [name for name in self.containers(service) if name not in before]

    def shrink(self, service: str, count: int) -> dict[str, int]:
        """Scale a service down to `count` replicas, the newest leaving first, as `docker compose` does.

        podman-compose only ever adds. Each is told to end, given its grace period, and removed.

        Returns:
            The exit status of each container that left.
        """
        leaving = self.containers(service)[count:]
        self._engine.podman("stop", "--time", str(self._grace_s(service)), *leaving)
        statuses = {name: int(self._engine.inspect(name)["State"]["ExitCode"]) for name in leaving}
        for name in leaving:
            self._logs_of_removed[name] = self._logs(name)
        self._engine.podman("rm", *leaving)
        return statuses

    def kill(self, container: str) -> float:
        """End a container as a crash does; return how long it took until it was started again, in seconds.

        Raises:
            CommandFailed: its restart policy does not bring it back.
        """
        process = int(self._engine.inspect(container)["State"]["Pid"])
        os.kill(process, signal.SIGKILL)
        started = time.monotonic()

        def is_back() -> bool:
            return int(self._engine.inspect(container)["State"]["Pid"]) not in (0, process)

        self._wait(is_back, 30, f"{container} is started again by its restart policy")
        return time.monotonic() - started

    def interrupt(self, service: str, *, away_s: float) -> tuple[float, float]:
        """Stop a service's only container and start it again.

        Returns:
            When it had stopped and when it was told to start, in seconds since the epoch.
        """
        (container,) = self.containers(service)
        self._engine.podman("stop", "--time", str(self._grace_s(service)), container)
        stopped = time.time()
        self.pause(away_s)
        starting = time.time()
        self._engine.podman("start", container)
        return stopped, starting

    def wait_healthy(self, *containers: str) -> None:
        """Wait until each container is healthy by its own check.

        Raises:
            CommandFailed: it is not in time; the text has the end of its log.
        """
        for container in containers:
            try:
                check = partial(self.is_healthy, container)
                # A check is a process that imports gRPC: asked all the time, it would slow down what it waits for.
                self._wait(check, HEALTHY_WITHIN_S, f"{container} is healthy", every_s=3)
            except CommandFailed as error:
                raise CommandFailed(f"{error}. It said last:\n{self._logs(container)[-1500:]}") from None

    def is_healthy(self, container: str) -> bool:
        """Run a container's own health check."""
        try:
            self._engine.podman("healthcheck", "run", container, timeout_s=60)
        except CommandFailed:
            return False
        return True

    def process_status(self, container: str) -> dict[str, str]:
        """Return what the kernel says of a container's first process."""
        process = self._engine.inspect(container)["State"]["Pid"]
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def is_read_only(self, container: str) -> bool:
        """Return whether a container's file system is mounted read-only."""
        process = self._engine.inspect(container)["State"]["Pid"]
        mounts = (line.split() for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines())
        return all("ro" in fields[5].split(",") for fields in mounts if fields[4] == "/")

    def has_limits(self, container: str) -> bool:
        """Return whether a container is bounded in memory and in processes."""
        limits = self._engine.inspect(container)["HostConfig"]
        return bool(limits["Memory"] > 0 and limits["PidsLimit"] > 0)

    def has_way_out(self, container: str) -> bool:
        """Return whether a container has a route to anywhere but its own networks."""
        process = self._engine.inspect(container)["State"]["Pid"]
        routes = Path(f"/proc/{process}/net/route").read_text().splitlines()[1:]
        return any(route.split()[1] == "00000000" for route in routes)

    def published(self) -> dict[str, list[str]]:
        """Return the ports that each container publishes on this machine, if any."""
        found: dict[str, list[str]] = {}
        for service in self.services:
            for name in self.containers(service):
                bindings = self._engine.inspect(name)["HostConfig"]["PortBindings"] or {}
                # A port that an image names and nobody publishes is there as well, bound to nothing.
                addresses = [f"{one['HostIp']}:{one['HostPort']}" for ports in bindings.values() for one in ports or []]
                if addresses:
                    found[service] = addresses
        return found

    def events(self, service: str, name: str) -> dict[str, list[dict[str, Any]]]:
        """Return the log lines of one kind that each container of a service has written, removed ones included.

        Each line has `at`: when it was written, in seconds since the epoch.
        """
        logs = {container: log for container, log in self._logs_of_removed.items() if f"_{service}_" in container}
        for container in self.containers(service):
            logs[container] = logs.get(container, "") + self._logs(container)
        return {container: _events(log, name) for container, log in logs.items()}

    def redis_ready_at(self) -> list[float]:
        """Return when Redis began to accept connections, each time, in seconds since the epoch."""
        (container,) = self.containers("redis")
        lines = re.findall(r"(\d+ \w+ \d+ [\d:.]+) \* Ready to accept", self._logs(container))
        # Redis writes local time, which in its container is UTC.
        return [datetime.strptime(f"{line} +0000", "%d %b %Y %H:%M:%S.%f %z").timestamp() for line in lines]

    def _compose(self, *arguments: str) -> None:
        file = str(ROOT / "docker-compose.yml")
        # Without a pod around them, containers have addresses of their own, as under Docker.
        options = ("--file", file, "--project-name", PROJECT, "--in-pod", "false")
        self._engine.compose(*options, *arguments, variables=self._variables)

    def _wait_for_end(self, container: str) -> None:
        self._wait(lambda: self._engine.inspect(container)["State"]["Status"] == "exited", 120, f"{container} ends")
        status = self._engine.inspect(container)["State"]["ExitCode"]
        if status:
            raise CommandFailed(f"{container} ended with {status}: {self._logs(container)[-1000:]}")

    def _wait(self, condition: Callable[[], bool], within_s: float, what: str, *, every_s: float = 0.2) -> None:
        until = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > until:
                raise CommandFailed(f"not within {within_s:.0f} s: {what}")
            self.pause(every_s)

    def _logs(self, container: str) -> str:
        return self._engine.podman("logs", container, stderr_too=True)

    def _grace_s(self, service: str) -> int:
        return int(self.services[service]["stop_grace_period"].removesuffix("s"))


def _number(container: str) -> int:
    found = _NUMBER.search(container)
    return int(found[1]) if found else 0


def _events(log: str, name: str) -> list[dict[str, Any]]:
    found = []
    for line in log.splitlines():
        if not line.startswith("{") or f'"event": "{name}"' not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # The last line of a container that was killed while it wrote.
        entry["at"] = datetime.fromisoformat(entry["timestamp"]).timestamp()
        found.append(entry)
    return found
