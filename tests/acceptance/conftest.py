"""Other people's programs against ours. `make acceptance` installs them; `make test` does without."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import RANDOM_MODEL, Process, service
from tests.photographs import photograph

ROOT = Path(__file__).resolve().parent.parent.parent
INSTALLED = ROOT / "build" / "acceptance"
"""Where tools/ensure_acceptance.sh installs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.acceptance)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`samovar serve`, in the number format of the decoders that it is compared with."""
    folder = tmp_path_factory.mktemp("server")
    settings = {**RANDOM_MODEL, "SAMOVAR_DECODER_PRECISION": "float32"}
    with service("samovar", folder, settings, arguments=("serve",)) as process:
        yield process


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph of 640 x 427 pixels."""
    return Path(shutil.copy(photograph(), tmp_path / "photo.jpg"))


def program(name: str) -> str:
    """Return where a program is; servers are often where only root looks."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    assert found, f"{name} is not installed: run 'make acceptance', which installs it"
    return found


def installed(path: str) -> Path:
    """Return a file or folder that tools/ensure_acceptance.sh puts in place."""
    found = INSTALLED / path
    assert found.exists(), f"{found} is missing: run 'make acceptance', which makes it"
    return found
