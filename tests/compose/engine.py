"""A podman of the test's own: its images, containers, networks and volumes are apart from everything else here."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_CONTAINERS_CONF = """\
[containers]
# Within what a confined machine allows a process to ask for.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
# The DNS server of podman's networks begins anew with every container that comes or goes, and loses what it is asked
# meanwhile. Docker's does not. Without this, a lost question is asked again after five seconds.
dns_options = ["timeout:1", "attempts:5"]

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
# Health checks are run by the test: podman would ask systemd to, which is not everywhere.
env = ["DISABLE_HC_SYSTEMD=true"]

[network]
network_backend = "netavark"
network_config_dir = "{networks}"
"""

_STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{images}"
runroot = "/run/samovar-compose-test"
"""


# The group of processes that all containers are in, by the version of cgroups: the weight of one process outside.
_WEIGHTS = {
    Path("/sys/fs/cgroup/cpu/libpod_parent/cpu.shares"): 1024,
    Path("/sys/fs/cgroup/libpod_parent/cpu.weight"): 100,
}


class CannotRun(Exception):
    """Containers cannot be built or run on this machine; the text says why."""


class CommandFailed(Exception):
    """A command ended with an error; the text is its last words."""


class Engine:
    """Runs podman and podman-compose.

    Attributes:
        folder: where images and everything else is kept.
    """

    def __init__(self, folder: Path) -> None:
        """Set up, and take the folder for this process alone.

        Raises:
            CannotRun: there is no podman, or another run uses the folder.
        """
        if not shutil.which("podman"):
            raise CannotRun("podman is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        # As the kernel names it among its mounts.
        self.folder = folder = folder.resolve()
        self._taken = _take(folder / "lock")
        self._stopping = threading.Event()
        confs = {
            "CONTAINERS_CONF": _CONTAINERS_CONF.format(networks=folder / "networks"),
            "CONTAINERS_STORAGE_CONF": _STORAGE_CONF.format(images=folder / "images"),
        }
        # Docker's format of images, which alone has health checks.
        self._variables = {"BUILDAH_FORMAT": "docker"}
        for variable, text in confs.items():
            path = folder / f"{variable.lower()}.conf"
            path.write_text(text)
            self._variables[variable] = str(path)

    def close(self) -> None:
        """Let others use the folder, or remove it: podman leaves mounts there, killed builds too."""
        mounts = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if self.folder in mount.parents]):
            run(["umount", str(mount)], dict(os.environ), check=False)
        self._taken.close()

    def podman(
        self, *arguments: str, variables: dict[str, str] | None = None, stdin: IO[bytes] | None = None, **options: Any
    ) -> str:
        """Run podman and return what it prints; see `run`."""
        return run(["podman", *arguments], {**os.environ, **self._variables, **(variables or {})}, stdin, **options)

    def compose(self, *arguments: str, variables: dict[str, str], **options: Any) -> str:
        """Run podman-compose on the project's own file; see `run`."""
        program = str(Path(sys.executable).with_name("podman-compose"))
        return run([program, *arguments], {**os.environ, **self._variables, **variables}, **options)

    def pause(self, seconds: float) -> None:
        """Sleep, unless it is to stop.

        Raises:
            CommandFailed: it is.
        """
        if self._stopping.wait(max(0.0, seconds)):
            raise CommandFailed("it was stopped")

    def stop(self) -> None:
        """End all pauses, in whichever thread they are, so that a Ctrl-C need not wait for them."""
        self._stopping.set()

    def weigh_containers(self, count: int) -> None:
        """Let each of `count` containers have as much of a busy machine's cores as a process outside has.

        They are in one group, which together would have as much as one process: on a machine that does other work they
        would starve, and no figure would tell of them.
        """
        for file, weight in _WEIGHTS.items():
            if file.exists():
                file.write_text(str(min(count, 100) * weight))

    def inspect(self, container: str) -> dict[str, Any]:
        """Return all that podman knows of a container."""
        found: list[dict[str, Any]] = json.loads(self.podman("container", "inspect", container))
        return found[0]

    def leftovers(self) -> list[str]:
        """Return what exists besides images: containers, volumes, networks."""
        containers = self.podman("ps", "--all", "--format", "{{.Names}}").split()
        volumes = self.podman("volume", "ls", "--format", "{{.Name}}").split()
        networks = self.podman("network", "ls", "--format", "{{.Name}}").split()
        return [*containers, *volumes, *(name for name in networks if name != "podman")]

    def clean_up(self) -> None:
        """Remove every container, volume and network, also those of a run that was killed."""
        self.podman("rm", "--all", "--force", "--time", "0", "--volumes", check=False)
        self.podman("volume", "prune", "--force", check=False)
        for name in self.podman("network", "ls", "--format", "{{.Name}}", check=False).split():
            if name != "podman":
                self.podman("network", "rm", "--force", name, check=False)
        # What earlier builds have left behind; the layers of the latest ones make the next one quick.
        self.podman("image", "prune", "--force", "--filter", "until=24h", check=False)

    def forget_images(self) -> None:
        """Remove every image, too."""
        self.podman("rmi", "--all", "--force", check=False)


def run(
    command: Sequence[str],
    environment: dict[str, str],
    stdin: IO[bytes] | None = None,
    *,
    check: bool = True,
    timeout_s: float = 300,
    log: Path | None = None,
    stderr_too: bool = False,
) -> str:
    """Run a command to its end, with all that it starts, and return its standard output.

    Args:
        command: the program and its arguments.
        environment: its variables.
        stdin: what it reads; nothing, if not given.
        check: whether an exit status other than 0 is an error.
        timeout_s: after how many seconds it is given up.
        log: a file for all of its output, instead of returning it.
        stderr_too: whether standard error is returned as well.

    Raises:
        CommandFailed: it ended with another exit status than 0, or did not end in time.
    """
    with open(log, "ab") if log else open(os.devnull, "wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=stdin or subprocess.DEVNULL,
            stdout=output if log else subprocess.PIPE,
            stderr=subprocess.STDOUT if log else subprocess.PIPE,
            # Ctrl-C is for this process, which ends what it has started in order.
            start_new_session=True,
        )
        try:
            printed, said = process.communicate(timeout=timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandFailed(f"'{' '.join(command[:4])} ...' did not end within {timeout_s:.0f} s") from None
            raise
    text = (printed or b"").decode(errors="replace")
    complaint = (said or b"").decode(errors="replace")
    if check and process.returncode:
        last = log.read_text(errors="replace") if log else complaint or text
        raise CommandFailed(f"'{' '.join(command[:4])} ...' ended with {process.returncode}: {_end_of(last)}")
    return complaint + text if stderr_too else text


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-8:])


def _take(lock: Path) -> IO[str]:
    file = lock.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise CannotRun(f"another run uses {lock.parent}; wait for its end") from None
    return file
