"""`samovar weights`, against a mirror of the test's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sam import published
from sam.published import PUBLISHED, PublishedCheckpoint
from samovar.weights import command
from tests.conftest import free_port
from tests.sam.file_server import FileServer

CONTENT = b"weights of a very small model"


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the published checkpoints be small ones: the real ones are of gigabytes."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    small = {model: PublishedCheckpoint(f"{model}.pth", len(CONTENT), digest) for model in PUBLISHED}
    for model, known in small.items():
        monkeypatch.setitem(PUBLISHED, model, known)
    for name in ("SAMOVAR_MODEL", "SAMOVAR_CHECKPOINT", "SAMOVAR_WEIGHTS_DIR", "SAMOVAR_WEIGHTS_URL"):
        monkeypatch.delenv(name, raising=False)
    assert published.PUBLISHED["vit_b"].size_bytes == len(CONTENT)


@pytest.fixture
def mirror() -> Iterator[str]:
    """A mirror that has the files."""
    with FileServer(CONTENT).running() as server:
        yield server.base_url


@pytest.fixture
def nowhere() -> str:
    """A mirror that is not there."""
    return f"http://127.0.0.1:{free_port()}/"


def weights(folder: Path, *arguments: str, **variables: str) -> Result:
    """Run `samovar weights`."""
    return CliRunner().invoke(command, arguments, env={"SAMOVAR_WEIGHTS_DIR": str(folder), **variables})


def test_pull_and_verify(tmp_path: Path, mirror: str) -> None:
    """What was asked for is downloaded and verified, listed, and found again later."""
    assert weights(tmp_path, "verify").exit_code == 1
    done = weights(tmp_path, "pull", "vit_b", "vit_h", "--mirror", mirror)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vit_b.pth", "vit_h.pth"]
    states = {line.split()[0]: line for line in weights(tmp_path, "list").output.splitlines()}
    assert str(tmp_path / "vit_b.pth") in states["vit_b"]
    assert states["vit_l"].endswith("not here")
    verified = weights(tmp_path, "verify")
    assert verified.exit_code == 0
    assert verified.output.count("is the published one") == 2


def test_pull_without_an_argument(tmp_path: Path, mirror: str) -> None:
    """Without an argument, what the services would look for is downloaded."""
    assert weights(tmp_path / "a", "pull", SAMOVAR_WEIGHTS_URL=mirror).exit_code == 0
    assert weights(tmp_path / "b", "pull", SAMOVAR_WEIGHTS_URL=mirror, SAMOVAR_MODEL="vit_l").exit_code == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["vit_b.pth"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["vit_l.pth"]


@pytest.mark.parametrize("variables", [{"SAMOVAR_CHECKPOINT": "random:0"}, {"SAMOVAR_MODEL": "starter"}])
def test_nothing_to_pull(tmp_path: Path, nowhere: str, variables: dict[str, str]) -> None:
    """Where the services would download nothing, neither does this."""
    done = weights(tmp_path, "pull", "--mirror", nowhere, **variables)
    assert done.exit_code == 0
    assert "Nothing to download" in done.output


def test_or_starter(tmp_path: Path, nowhere: str) -> None:
    """Without a network and without a wish, the services may serve the starter, if there is one; else they may not."""
    assert weights(tmp_path, "pull", "--mirror", nowhere).exit_code == 1
    done = weights(tmp_path, "pull", "--mirror", nowhere, "--or-starter")
    here = published.starter_checkpoint() is not None
    assert done.exit_code == (0 if here else 1)
    assert ("the services will serve the bundled starter" in done.stderr) is here
    assert weights(tmp_path, "pull", "--mirror", nowhere, "--or-starter", SAMOVAR_MODEL="vit_h").exit_code == 1
    assert weights(tmp_path, "pull", "vit_b", "--mirror", nowhere, "--or-starter").exit_code == 1


def test_wrong_file(tmp_path: Path, mirror: str) -> None:
    """A file that is not the published one is reported by every command and replaced by none."""
    (tmp_path / "vit_b.pth").write_bytes(bytes(len(CONTENT)))
    for arguments in (["verify"], ["pull", "--mirror", mirror], ["pull", "--mirror", mirror, "--or-starter"]):
        done = weights(tmp_path, *arguments)
        assert done.exit_code == 1
        assert "is not the published vit_b.pth" in done.stderr
    (tmp_path / "vit_b.pth").write_bytes(b"short")
    assert "not the published size" in weights(tmp_path, "list").output


def test_how_far_a_download_is(tmp_path: Path) -> None:
    """An interrupted download is listed with how far it is."""
    (tmp_path / "vit_b.pth.part").write_bytes(CONTENT[: len(CONTENT) // 2])
    assert "48% downloaded" in weights(tmp_path, "list").output


def test_bad_setting(tmp_path: Path) -> None:
    """A variable with a value that no service would take is one line."""
    done = weights(tmp_path, "pull", SAMOVAR_MODEL="vit_x")
    assert done.exit_code == 2
    assert "SAMOVAR_MODEL" in done.stderr
