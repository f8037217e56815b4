"""Builds the project's own images, over base images that stand in for those of a registry."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.compose.engine import CannotRun, CommandFailed, Engine, run
from tests.deploy.compose import ROOT, load_compose

_STAND_INS = Path(__file__).with_name("stand_ins")
_DEBIAN = "bookworm"
_ROOT_IMAGE = f"samovar-stand-in:{_DEBIAN}"

# What pip must know to find packages, out of all that it can be told.
_PIP_OPTIONS = {"cert", "default-timeout", "extra-index-url", "find-links", "index-url", "no-index", "trusted-host"}
_PIP_CONF = "/etc/pip.conf"


def make_base_images(engine: Engine, *, mirror: str) -> None:
    """Make what the Dockerfiles and the compose file name as bases, unless they were made before.

    Raises:
        CannotRun: a Debian cannot be installed into a folder, or no container runs here.
    """
    services = load_compose()["services"]
    wanted = {
        str(services["gateway"]["build"]["args"]["BASE"]): "python",
        str(services["redis"]["image"]): "redis",
    }
    if not _exists(engine, _ROOT_IMAGE):
        _import_debian(engine, mirror)
    for image, name in wanted.items():
        # The whole name: a short one is asked for in registries.
        full_name = f"docker.io/library/{image}"
        if not _exists(engine, full_name):
            file = str(_STAND_INS / f"{name}.Dockerfile")
            arguments = ["--network", "host", "--build-arg", f"ROOT={_ROOT_IMAGE}", "-f", file, "-t", full_name]
            try:
                engine.podman("build", *arguments, str(_STAND_INS), timeout_s=900)
            except CommandFailed as error:
                raise CannotRun(f"podman builds no image here: {error}") from None


def assert_containers_run(engine: Engine) -> None:
    """Run a container.

    Raises:
        CannotRun: it does not run, or not to its end.
    """
    base = load_compose()["services"]["gateway"]["build"]["args"]["BASE"]
    try:
        said = engine.podman("run", "--rm", base, "python", "-c", "print(6 * 7)", variables=without_proxies())
    except CommandFailed as error:
        raise CannotRun(f"podman runs no container here: {error}") from None
    if said.strip() != "42":
        raise CannotRun(f"a container that should print 42 prints {said!r}")


def build_images(engine: Engine, project: str, log: Path) -> None:
    """Build the project's images as its compose file says, each with pip configured as it is on this machine.

    Raises:
        CommandFailed: one cannot be built; `log` has the whole story.
    """
    configuration = pip_configuration()
    folders = [_PIP_CONF, *local_paths(configuration.values())]
    pip_conf = engine.folder / "pip.conf"
    pip_conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in configuration.items()))
    mounts = {path: path for path in folders} | {_PIP_CONF: str(pip_conf)}
    options = ["--network host", *(f"--volume {here}:{path}:ro" for path, here in mounts.items())]
    # One after another: each is a big installation. `weights` runs the decoder's image.
    for service in ("gateway", "decoder", "encoder"):
        print(f"Building samovar-{service}", flush=True)
        arguments = ["--project-name", project, f"--podman-build-args={' '.join(options)}", "build", service]
        engine.compose("--file", str(ROOT / "docker-compose.yml"), *arguments, variables={}, timeout_s=3600, log=log)


def pip_configuration(python: str = sys.executable) -> dict[str, str]:
    """Return where pip looks on this machine, as its files and variables tell it.

    Args:
        python: whose pip.
    """
    command = [python, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in printed.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found and option in _PIP_OPTIONS:
            # Of several lines pip makes one value, and shows it as Python would.
            found[section][option] = " ".join(str(ast.literal_eval(value)).split())
    merged = found["global"] | found["install"] | found[":env:"]
    if bundle := os.environ.get("REQUESTS_CA_BUNDLE"):
        merged.setdefault("cert", bundle)
    return merged


def local_paths(values: Iterable[str]) -> list[str]:
    """Return the files and folders of this machine that are named, by their paths or as file: URLs."""
    words = [word for value in values for word in value.split()]
    paths = [unquote(urlsplit(word).path) if word.startswith("file:") else word for word in words]
    existing = {path for path in paths if path.startswith("/") and Path(path).exists()}
    # An index in a folder may point to files beside it.
    indexes = {str(Path(path).parent) for path in existing if path.rstrip("/").endswith("/simple")}
    return sorted(existing - {path for path in existing if str(Path(path).parent) in indexes} | indexes)


def without_proxies(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables that take proxies away, which podman would hand to containers and Docker would not."""
    return {name: "" for name in environment if name.lower().endswith("_proxy")}


def _exists(engine: Engine, image: str) -> bool:
    try:
        engine.podman("image", "exists", image)
    except CommandFailed:
        return False
    return True


def _import_debian(engine: Engine, mirror: str) -> None:
    print(f"Making base images from Debian {_DEBIAN}", flush=True)
    with tempfile.TemporaryDirectory(dir=engine.folder) as folder:
        root = Path(folder) / "root"
        command = ["debootstrap", "--variant=minbase", _DEBIAN, str(root), *([mirror] if mirror else [])]
        try:
            run(command, dict(os.environ), timeout_s=1800)
            archive = Path(folder) / "root.tar"
            run(["tar", "--create", f"--file={archive}", f"--directory={root}", "."], dict(os.environ))
            engine.podman("import", str(archive), _ROOT_IMAGE)
        except (CommandFailed, FileNotFoundError) as error:
            raise CannotRun(f"no base image can be made: {error}") from None
