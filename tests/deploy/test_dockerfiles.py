"""The Dockerfiles: what they copy, install and run exists, and an image has all that its service imports."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from samovar.cli import command as samovar_command
from tests.deploy.compose import ROOT, load_compose
from tests.deploy.dockerfile import SERVICES, Dockerfile, read_dockerfile

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"encoder_service": "encoder", "decoder_service": "decoder", "gateway": "gateway"}

OUR_PACKAGES = {"sam", "samovar", *SERVICES}

# Prints the files of our own modules that importing some of them loads.
_LOADED = """
import importlib, json, sys
sys.path.insert(0, {folder!r})
for name in {modules!r}:
    importlib.import_module(name)
ours = [module for name, module in sys.modules.items() if name.split(".")[0] in {ours!r}]
print(json.dumps([module.__file__ for module in ours if not module.__name__.startswith("sam._upstream")]))
"""


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    """Each service that has an image."""
    return str(request.param)


@pytest.fixture
def dockerfile(service: str) -> Dockerfile:
    """Its Dockerfile."""
    return read_dockerfile(service)


def test_what_is_copied_exists(dockerfile: Dockerfile) -> None:
    """Everything that is copied is in the repository and not kept out of the build by .dockerignore."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for source in dockerfile.copied:
        assert (ROOT / source).exists(), source
        # A folder that is let in is let in with what it holds.
        names = [source, *map(str, Path(source).parents)]
        assert any(fnmatch.fnmatch(name, pattern) for name in names for pattern in allowed), source


def test_only_its_own_code_is_copied(service: str, dockerfile: Dockerfile) -> None:
    """An image holds the shared package, the command line and one service."""
    assert {name for sources, _ in dockerfile.image.copies for name in sources} == {"sam", "samovar", service}


def test_the_command_is_its_service(service: str, dockerfile: Dockerfile) -> None:
    """The container runs its service's module, as process 1, which SIGTERM drains."""
    assert dockerfile.image.command == ["python", "-m", service]
    assert (ROOT / service / "__main__.py").exists()
    assert dockerfile.image.settings["STOPSIGNAL"] == "SIGTERM"


def test_the_health_check_is_a_command_of_ours(service: str, dockerfile: Dockerfile) -> None:
    """Docker asks by `samovar healthcheck`, with arguments it accepts, on the port that the service listens on."""
    program, group_name, kind, *arguments = dockerfile.image.healthcheck
    assert (program, group_name) == ("samovar", "healthcheck")
    group = samovar_command.get_command(click.Context(samovar_command), group_name)
    assert isinstance(group, click.Group)
    check = group.commands[kind].make_context(kind, arguments)
    port, metrics_port = dockerfile.image.settings["EXPOSE"].split()
    target = check.params["target"] if kind == "grpc" else check.params["url"]
    assert f"127.0.0.1:{port}" in target
    compose_ports = {"encoder_service": "50051", "decoder_service": "50052", "gateway": "9001"}
    assert port == compose_ports[service]
    assert metrics_port == dockerfile.image.environment["SAMOVAR_METRICS_PORT"]
    timeout_s = float(dockerfile.image.healthcheck_options["timeout"].removesuffix("s"))
    assert check.params["timeout_s"] < timeout_s


def test_not_root(dockerfile: Dockerfile) -> None:
    """The service runs as a user by number, which an orchestrator can check."""
    assert int(dockerfile.image.settings["USER"]) >= 10_000


def test_weights_have_a_place(service: str, dockerfile: Dockerfile) -> None:
    """What needs weights keeps them in a volume; the gateway has none."""
    place = dockerfile.image.environment.get("SAMOVAR_WEIGHTS_DIR")
    assert place == dockerfile.image.settings.get("VOLUME") == (None if service == "gateway" else "/weights")


def test_closed_networks_can_build(service: str, dockerfile: Dockerfile) -> None:
    """The base image and where pip looks are build arguments, none with a value that needs the open network."""
    wanted = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_TRUSTED_HOST"}
    wanted |= set() if service == "gateway" else {"TORCH_INDEX"}
    assert {name: dockerfile.arguments[name] for name in wanted} == dict.fromkeys(wanted, "")
    assert dockerfile.arguments["BASE"].startswith("python:3.11-slim")
    build = load_compose()["services"][EXTRAS[service]]["build"]
    assert build["dockerfile"] == f"{service}/Dockerfile"
    assert set(build["args"]) <= set(dockerfile.arguments)
    assert wanted | {"BASE"} <= set(build["args"])


def test_torch_where_it_belongs(service: str, dockerfile: Dockerfile) -> None:
    """The gateway installs no torch, the decoder the CPU build, the encoder what it is told."""
    installs = [run for run in dockerfile.runs if "install_torch.sh" in run]
    if service == "gateway":
        assert not installs
        return
    (install,) = installs
    assert ("TORCH=cpu" in install) == (service == "decoder_service")
    assert dockerfile.arguments.get("TORCH") == ("cpu" if service == "encoder_service" else None)


def test_an_image_has_what_its_service_imports(service: str, dockerfile: Dockerfile, tmp_path: Path) -> None:
    """Imported from what the image holds alone, all of our code is in it, and so is every package that it names."""
    for sources, _ in dockerfile.image.copies:
        for source in sources:
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    modules = [f"{service}.__main__", "samovar.__main__", "samovar.healthcheck", "samovar.weights"]
    program = _LOADED.format(folder=str(tmp_path), modules=modules, ours=OUR_PACKAGES)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    files = [Path(file) for file in json.loads(done.stdout)]
    assert files
    assert [file for file in files if not file.is_relative_to(tmp_path)] == []

    (extra,) = {match for run in dockerfile.runs for match in re.findall(r'"\.\[(\w+)\$\{TRACING:\+,tracing\}\]"', run)}
    assert extra == EXTRAS[service]
    installed = _closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]])
    providers = metadata.packages_distributions()
    for file in files:
        for name in _packages_imported(file) - OUR_PACKAGES - sys.stdlib_module_names:
            distributions = {_canonical(provider) for provider in providers[name]}
            assert distributions & installed, f"{file.relative_to(tmp_path)} imports {name}, which {extra} lacks"


def _packages_imported(file: Path) -> set[str]:
    """Return the packages that a module imports, now or later."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def _closure(requirements: list[str]) -> set[str]:
    """Return the distributions that pip installs for some requirements, as far as this environment knows them."""
    found: set[tuple[str, str]] = set()
    pending = [(Requirement(text), "") for text in requirements]
    while pending:
        requirement, for_extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": for_extra}):
            continue
        name = _canonical(requirement.name)
        if name == "samovar":
            texts = [text for extra in requirement.extras for text in PROJECT["optional-dependencies"][extra]]
            pending += [(Requirement(text), "") for text in texts]
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) not in found:
                found.add((name, extra))
                pending += [(Requirement(text), extra) for text in metadata.requires(name) or []]
    return {name for name, _ in found}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
