"""The checkpoints that the authors of SAM publish: which there are, downloading one, checking one.

Knows nothing of torch, so that `samovar weights` and `samovar doctor` work wherever the command line does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from sam.downloads import download
from sam.errors import StartupError
from sam.settings import ModelSettings

DEFAULT_MODEL = "vit_b"


def starter_checkpoint() -> Path | None:
    """Return the small checkpoint that is bundled for trying the services out; None if this build carries none."""
    path = Path(str(resources.files("sam").joinpath("weights", "starter.safetensors")))
    return path if path.exists() else None


class PublishedCheckpoint(NamedTuple):
    """One of the three files that the authors of SAM publish."""

    file_name: str
    size_bytes: int
    sha256: str


# Source: the model checkpoints section of segment-anything's README; digests of the published files.
PUBLISHED: Mapping[str, PublishedCheckpoint] = {
    "vit_b": PublishedCheckpoint(
        "sam_vit_b_01ec64.pth", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": PublishedCheckpoint(
        "sam_vit_l_0b3195.pth", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": PublishedCheckpoint(
        "sam_vit_h_4b8939.pth", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}


def pull(model: str, settings: ModelSettings) -> Path:
    """Return the published checkpoint of a model, downloading it if it is not there, its digest verified.

    Raises:
        StartupError: it cannot be downloaded, or the file that is there is not the published one.
    """
    known = PUBLISHED[model]
    path = settings.weights_dir / known.file_name
    if not path.exists():
        url = settings.weights_url.rstrip("/") + "/" + known.file_name
        return download(url, path, size_bytes=known.size_bytes, sha256=known.sha256)
    verify(path, known)
    return path


def verify(path: Path, known: PublishedCheckpoint) -> None:
    """Check that a file is the published one.

    Raises:
        StartupError: it is not.
    """
    if path.stat().st_size != known.size_bytes or sha256_of(path) != known.sha256:
        raise StartupError(
            f"{path} is not the published {known.file_name}: its size or SHA-256 differs. "
            "Delete it and run 'samovar weights pull', or give a file of your own another name."
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    status = path.stat()
    return _sha256_of(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256_of(path: Path, *_version: int) -> str:
    # Remembered for as long as the file is the same one: the all-in-one asks for both of its services, and hashing
    # vit_h's 2.4 GiB takes seconds.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
