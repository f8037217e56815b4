"""Downloading large files: resumed, verified, and never half there under their own name."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sam.errors import StartupError

log = structlog.get_logger("sam.downloads")

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 20.0

ATTEMPTS = 5
"""How often a connection that ends early is taken up again, before that is left to the person at the keyboard."""


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
        with part.open("a+b") as file:
            _wait_for_turn(file)
            if path.exists():
                # Another process was first. The file opened above is either what it moved there, or a new empty one.
                part.unlink(missing_ok=True)
                return path
            log.info("downloading", url=url, file=path.name, mib=size_bytes // 2**20)
            _fill(file, url, path, size_bytes, sha256)
            os.replace(part, path)
    except OSError as error:
        raise StartupError(f"Cannot write {part}: {error.strerror}.") from None
    return path


def _wait_for_turn(file: BufferedRandom) -> None:
    """Lock the file; its closing unlocks it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another process downloads this file; waiting for it", file=file.name)
        fcntl.flock(file, fcntl.LOCK_EX)


def _fill(file: BufferedRandom, url: str, path: Path, size_bytes: int, sha256: str) -> None:
    """Append to the open file what is missing of it, until its digest is right."""
    resumed = file.seek(0, os.SEEK_END) > 0
    for _ in range(ATTEMPTS):
        done = file.seek(0, os.SEEK_END)
        if done < size_bytes:
            with _explaining(url, path):
                _continue(file, url, size_bytes, path.name)
        if file.seek(0, os.SEEK_END) < size_bytes:
            continue
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == sha256:
            return
        # Not unlinked: others may be waiting for the lock on this very file.
        file.truncate(0)
        if not resumed:
            raise StartupError(
                f"What {url} sent is not {path.name}: its SHA-256 is {digest}, not {sha256}. It was deleted."
            )
        # What an earlier run left may have been at fault, so once more from the beginning.
        resumed = False
    raise StartupError(
        f"{url} keeps ending early: {file.seek(0, os.SEEK_END)} of {size_bytes} bytes are here. "
        "Run the same command again to continue."
    )


def _continue(file: BufferedRandom, url: str, size_bytes: int, label: str) -> None:
    """Append what one connection brings, which may be less than all that is missing."""
    done = file.seek(0, os.SEEK_END)
    with _opened(url, done) as response, _progress() as progress:
        if done and response.status != http.client.PARTIAL_CONTENT:
            # The server does not continue; what it sends starts at the beginning.
            file.truncate(0)
            done = 0
        coming = response.headers.get("Content-Length")
        offered = size_bytes if coming is None else done + int(coming)
        if offered != size_bytes:
            raise StartupError(f"What {url} offers is not {label}: it has {offered} bytes, not {size_bytes}.")
        task = progress.add_task(label, total=size_bytes, completed=done)
        while chunk := _read(response):
            done += len(chunk)
            if done > size_bytes:
                file.truncate(0)
                raise StartupError(f"What {url} sends is not {label}: it has more than {size_bytes} bytes.")
            file.write(chunk)
            progress.update(task, completed=done)
            tenths = done * 10 // size_bytes
            if progress.disable and tenths > (done - len(chunk)) * 10 // size_bytes:
                # Where there is no terminal to draw a bar on.
                log.info("downloading", file=label, percent=tenths * 10)
        file.flush()


def _opened(url: str, done: int) -> http.client.HTTPResponse:
    """Ask for the file from byte `done` on, or for all of it where the server cannot."""
    headers = {"Range": f"bytes={done}-"} if done else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (its scheme was checked)
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 (checked)
    except urllib.error.HTTPError as error:
        error.close()
        if done and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _opened(url, 0)
        raise
    return response


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes; none at the end, be it the file's or a broken connection's."""
    try:
        return response.read(CHUNK_BYTES)
    except http.client.IncompleteRead as error:
        return error.partial
    except OSError:
        # A time-out, a reset, or TLS cut short.
        return b""


@contextmanager
def _explaining(url: str, path: Path) -> Iterator[None]:
    """Turn what the network raises into one line that says what to do."""
    try:
        yield
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        cause = getattr(error, "reason", None) or type(error).__name__
        raise StartupError(
            f"Cannot download {url}: {cause}. Check the network, name a mirror with --weights-url, "
            f"or put the file at {path} yourself."
        ) from None


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty())
