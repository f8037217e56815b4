"""The scripts that find and install the browser, with stand-ins for what they would install with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.processes import ROOT

TOOLS = ROOT / "tools"
SHELL = "/bin/sh"
ENSURE = [SHELL, str(TOOLS / "ensure_chromium.sh")]


def programs(folder: Path, *names: str, **scripts: str) -> dict[str, str]:
    """Return an environment in which only some real programs, and some stand-ins, can be found."""
    for name in ("dirname", *names):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    for name, lines in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!{SHELL}\n{lines}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    return {"PATH": str(folder)}


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script in an environment."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_browser_that_is_there(tmp_path: Path) -> None:
    """Where there is a Chromium nothing is installed and nothing said; CHROMIUM names another."""
    environment = programs(tmp_path, chromium="exit 0", other="exit 0")
    done = run(ENSURE, environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    find = [SHELL, str(TOOLS / "find_chromium.sh")]
    assert run(find, environment).stdout.strip() == str(tmp_path / "chromium")
    other = str(tmp_path / "other")
    assert run(find, environment | {"CHROMIUM": other}).stdout.strip() == other


def test_a_stand_in_is_no_browser(tmp_path: Path) -> None:
    """A program that only says how to install a browser is passed over."""
    environment = programs(tmp_path, chromium="exit 1")
    assert run([SHELL, str(TOOLS / "find_chromium.sh")], environment).stdout == ""


@pytest.mark.parametrize("without", [False, True])
def test_a_browser_that_cannot_be_installed(tmp_path: Path, without: bool) -> None:
    """Where nothing installs it, one line says what to do; with WITHOUT_CHROMIUM all goes on."""
    environment = programs(tmp_path, "id", "mktemp", "tail", "rm", "env")
    done = run(ENSURE, environment | ({"WITHOUT_CHROMIUM": "1"} if without else {}))
    assert done.returncode == (0 if without else 1)
    assert len(done.stderr.splitlines()) == (0 if without else 1)
    assert without or "apt-get install chromium" in done.stderr


def test_the_browser_is_installed_from_the_systems_packages(tmp_path: Path) -> None:
    """Where it is missing and the system's packages can be installed, they are."""
    installing = f"ln -s /bin/true {tmp_path}/chromium"
    environment = programs(
        tmp_path,
        *("mktemp", "tail", "rm", "env", "ln", "cat"),
        id="echo 0",
        apt_get=f'echo "$*" >>{tmp_path}/asked; case "$*" in install*) {installing} ;; esac',
    )
    done = run(ENSURE, environment)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["update -q", "install -q -y --no-install-recommends chromium"]
