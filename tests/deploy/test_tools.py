"""The scripts behind `make`, with stand-ins for what they would install with."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.compose import ROOT

TOOLS = ROOT / "tools"
SHELL = "/bin/sh"

# A Python whose pip writes its arguments down, and finds what CPU_BUILD says there is.
_FAKE_PYTHON = """#!/bin/sh
echo "$*" >>"$ASKED"
case "$*" in *+cpu) exit "$WITHOUT_CPU_BUILD" ;; esac
"""


def torch_installs(
    tmp_path: Path, *arguments: str, without_cpu_build: bool = False, **variables: str
) -> tuple[list[str], str]:
    """Run install_torch.sh; return what it asked pip for, and what it said."""
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(_FAKE_PYTHON)
    python.chmod(0o755)
    told = {"ASKED": str(asked), "WITHOUT_CPU_BUILD": str(int(without_cpu_build)), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [SHELL, str(TOOLS / "install_torch.sh"), str(python), *arguments],
        env=told | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if not asked.exists() else 0)
    lines = asked.read_text().splitlines() if asked.exists() else []
    return [line.split(" install ")[1] for line in lines], done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is only one build")
def test_the_cpu_build_is_taken_where_there_is_one(tmp_path: Path) -> None:
    """Without a word about it, the CPU build is installed, from where pip or TORCH_INDEX says."""
    assert torch_installs(tmp_path) == (["torch==2.13.0+cpu"], "")
    (tmp_path / "asked").unlink()
    asked, _ = torch_installs(tmp_path, "--find-links", "here", TORCH_INDEX="https://index.example/cpu")
    assert asked == ["--find-links here --extra-index-url https://index.example/cpu torch==2.13.0+cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is only one build")
def test_without_a_cpu_build_the_default_is_taken(tmp_path: Path) -> None:
    """Where there is no CPU build, the default one is installed, after saying how to get the small one."""
    asked, said = torch_installs(tmp_path, without_cpu_build=True)
    assert asked == ["torch==2.13.0+cpu", "torch==2.13.0"]
    assert "TORCH_INDEX" in said


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is only one build")
def test_the_cuda_build_on_request(tmp_path: Path) -> None:
    """TORCH=cuda replaces a CPU build, by the default package or by what TORCH_INDEX has; nothing else is known."""
    assert torch_installs(tmp_path, TORCH="cuda") == (["--upgrade torch===2.13.0"], "")
    (tmp_path / "asked").unlink()
    asked, _ = torch_installs(tmp_path, TORCH="cuda", TORCH_INDEX="https://index.example/cu")
    assert asked == ["--upgrade --extra-index-url https://index.example/cu torch==2.13.0"]
    (tmp_path / "asked").unlink()
    asked, said = torch_installs(tmp_path, TORCH="gpu")
    assert asked == []
    assert "must be cpu or cuda" in said


def test_the_version_is_one_that_the_project_accepts() -> None:
    """The torch that `make` installs satisfies pyproject.toml, so that pip does not replace it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in project["optional-dependencies"]["model"]]
    (torch,) = [requirement for requirement in requirements if requirement.name == "torch"]
    assert "2.13.0" in torch.specifier


def tools_only(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment in which only some programs can be found."""
    for name in names:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return {"PATH": str(folder)}


def test_redis_that_is_there(tmp_path: Path) -> None:
    """Where there is a redis-server nothing is installed and nothing said."""
    environment = tools_only(tmp_path, "redis-server")
    done = subprocess.run([SHELL, str(TOOLS / "ensure_redis.sh")], env=environment, capture_output=True, check=True)
    assert done.stdout + done.stderr == b""


def test_redis_that_cannot_be_installed(tmp_path: Path) -> None:
    """Where it is missing and nothing installs it, one line says what to do."""
    environment = tools_only(tmp_path, "id", "mktemp", "tail")
    command = [SHELL, str(TOOLS / "ensure_redis.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "apt-get install redis-server" in done.stderr


def test_redis_is_installed_from_the_systems_packages(tmp_path: Path) -> None:
    """Where it is missing and the system's packages can be installed, they are."""
    environment = tools_only(tmp_path, "mktemp", "tail", "rm", "env", "ln", "cat")
    installing = f"ln -s /bin/sh {tmp_path}/redis-server"
    stand_ins = {
        "id": "echo 0",
        "apt-get": f'echo "$*" >>{tmp_path}/asked; case "$*" in install*) {installing} ;; esac',
    }
    for name, lines in stand_ins.items():
        (tmp_path / name).write_text(f"#!{SHELL}\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    command = [SHELL, str(TOOLS / "ensure_redis.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["update -q", "install -q -y --no-install-recommends redis-server"]


def promtool_fetched(tmp_path: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ensure_promtool.sh in a checkout of its own."""
    checkout = tmp_path / "checkout"
    (checkout / "tools").mkdir(parents=True)
    shutil.copy(TOOLS / "ensure_promtool.sh", checkout / "tools")
    command = [SHELL, str(checkout / "tools" / "ensure_promtool.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_promtool_is_unpacked_and_not_installed(tmp_path: Path) -> None:
    """From Debian's package the programs are taken without root, into the build folder, and not a second time."""
    programs = tmp_path / "programs"
    programs.mkdir()
    environment = tools_only(programs, "mktemp", "tail", "rm", "mkdir", "chmod", "dirname", "cat", "touch")
    unpacking = (
        'bin="$3/usr/bin"; mkdir -p "$bin"; '
        'for one in promtool prometheus; do touch "$bin/$one"; chmod +x "$bin/$one"; done'
    )
    stand_ins = {
        "id": "echo 1000",
        "apt-get": f'echo "$*" >>{tmp_path}/asked; touch prometheus_2_amd64.deb',
        "dpkg": unpacking,
    }
    for name, lines in stand_ins.items():
        (programs / name).write_text(f"#!{SHELL}\n{lines}\n")
        (programs / name).chmod(0o755)
    done = promtool_fetched(tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == ["download -q prometheus"]
    again = [SHELL, str(tmp_path / "checkout" / "tools" / "ensure_promtool.sh")]
    done = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_promtool_that_cannot_be_had(tmp_path: Path) -> None:
    """Where nothing gets it, one line says what to do."""
    programs = tmp_path / "programs"
    programs.mkdir()
    done = promtool_fetched(tmp_path, tools_only(programs, "mktemp", "tail", "rm", "dirname", "id"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "package prometheus" in done.stderr


def test_a_python_is_found() -> None:
    """The Python that `make` takes is recent enough."""
    found = subprocess.run([SHELL, str(TOOLS / "find_python.sh")], capture_output=True, text=True, check=True).stdout
    check = [found.strip(), "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    assert subprocess.run(check, check=False).returncode == 0


def test_no_python_is_found(tmp_path: Path) -> None:
    """Where there is none, nothing is printed, and `make` says what to do."""
    done = subprocess.run([SHELL, str(TOOLS / "find_python.sh")], env={"PATH": str(tmp_path)}, capture_output=True)
    assert done.stdout == b""


def test_every_target_explains_itself() -> None:
    """`make help` lists every target that is not a file."""
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in phony.split()[1:]:
        assert f"make {target} " in listed


def test_ci_runs_the_tests() -> None:
    """What CI runs is executable and calls `make test`."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "\nmake test\n" in script.read_text()
