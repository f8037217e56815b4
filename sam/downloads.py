"""Downloading large files: resumed, verified, and never half there under their own name."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sam.errors import StartupError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 20.0


def download(url: str, path: Path, *, size_bytes: int, sha256: str) -> Path:
    """Download a file and move it to its place once its SHA-256 is right.

    What an interrupted download left in `PATH.part` is continued. Several processes that download the same file take
    turns, and the later ones find it done.

    Args:
        url: where it is, `https` or `http`.
        path: where it goes; the folder is made.
        size_bytes: its size.
        sha256: its digest in hexadecimal digits.

    Raises:
        StartupError: the address cannot be reached, or what it sends is not the file.
    """
    if not url.startswith(("https://", "http://")):
        raise StartupError(f"Cannot download from {url}: the address must start with https:// or http://.")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                return path
            _continue(url, file.fileno(), size_bytes, path.name)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        cause = getattr(error, "reason", error)
        raise StartupError(
            f"Cannot download {url}: {cause}. Check the network, name a mirror with --weights-url, "
            f"or put the file at {path} yourself."
        ) from None
    except OSError as error:
        raise StartupError(f"Cannot write {part}: {error.strerror}.") from None
    if digest != sha256:
        part.unlink()
        raise StartupError(
            f"What {url} sent is not {path.name}: its SHA-256 is {digest}, not {sha256}. It was deleted."
        )
    os.replace(part, path)
    return path


def _continue(url: str, descriptor: int, size_bytes: int, label: str) -> None:
    """Append to the open file what is missing of it."""
    done = os.fstat(descriptor).st_size
    if done > size_bytes:
        os.ftruncate(descriptor, 0)
        done = 0
    if done == size_bytes:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310 (checked above)
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT_S) as response,  # noqa: S310 (checked above)
        _progress() as progress,
    ):
        if done and response.status != http.client.PARTIAL_CONTENT:
            # The server does not continue; what it sends starts at the beginning.
            os.ftruncate(descriptor, 0)
            done = 0
        task = progress.add_task(label, total=size_bytes, completed=done)
        while done <= size_bytes and (chunk := response.read(CHUNK_BYTES)):
            os.write(descriptor, chunk)
            done += len(chunk)
            progress.update(task, completed=done)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty())
