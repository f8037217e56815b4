"""Downloads against a real HTTP server: whole, continued, refused."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sam.downloads import download
from sam.errors import StartupError
from tests.conftest import free_port
from tests.sam.file_server import FileServer

CONTENT = random.Random(0).randbytes(3 * 2**20 + 5)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A server that does everything right."""
    with FileServer(CONTENT).running() as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file goes; its folder is not there yet."""
    return tmp_path / "weights" / "file.pth"


Fetch = Callable[[], Path]


@pytest.fixture
def fetch(server: FileServer, path: Path) -> Fetch:
    """Download the file from the server."""
    return lambda: download(server.base_url + path.name, path, size_bytes=len(CONTENT), sha256=SHA256)


def leave_part(path: Path, content: bytes) -> Path:
    """Leave what an interrupted download would."""
    path.parent.mkdir()
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    return part


def test_whole_file(fetch: Fetch, path: Path) -> None:
    """A file is downloaded whole, and nothing else is left beside it."""
    assert fetch() == path
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_without_a_stated_length(server: FileServer, fetch: Fetch) -> None:
    """A server that does not say how long its answer is will do."""
    server.states_length = False
    assert fetch().read_bytes() == CONTENT


def test_interrupted_download_is_continued(server: FileServer, fetch: Fetch, path: Path) -> None:
    """Only what is missing of an interrupted download is asked for."""
    leave_part(path, CONTENT[:1000])
    assert fetch().read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_complete_part_is_not_downloaded_again(server: FileServer, fetch: Fetch, path: Path) -> None:
    """A download that was killed just before its file was moved is finished without asking."""
    leave_part(path, CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges == []


def test_server_without_ranges(server: FileServer, fetch: Fetch, path: Path) -> None:
    """Where the server cannot continue, its whole answer replaces what was there."""
    server.honours_range = False
    leave_part(path, CONTENT[:1000])
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("states_length", [True, False])
def test_dropped_connections_are_taken_up_again(server: FileServer, fetch: Fetch, states_length: bool) -> None:
    """A connection that ends early is continued where it ended, in the same run."""
    server.breaks_after = 2**20
    server.states_length = states_length
    assert fetch().read_bytes() == CONTENT
    assert server.ranges == ["", *(f"bytes={done}-" for done in (2**20, 2 * 2**20, 3 * 2**20))]


def test_server_that_keeps_breaking(server: FileServer, fetch: Fetch, path: Path) -> None:
    """After a few broken connections the download fails, keeps what it has, and the next run continues."""
    server.breaks_after = 1000
    with pytest.raises(StartupError, match=r"keeps ending early: 5000 of \d+ bytes are here"):
        fetch()
    assert not path.exists()
    server.breaks_after = None
    assert fetch().read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=5000-"


def test_corrupt_part_is_replaced(server: FileServer, fetch: Fetch, path: Path) -> None:
    """If what was continued turns out wrong, the file is downloaded once more from its beginning."""
    leave_part(path, b"x" * 1000)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", ""]


@pytest.mark.parametrize("left", [b"", b"x" * 1000])
def test_wrong_digest(server: FileServer, fetch: Fetch, path: Path, left: bytes) -> None:
    """A file of another digest is refused and kept under no name, continued or not."""
    server.content = bytes(len(CONTENT))
    leave_part(path, left)
    with pytest.raises(StartupError, match=f"is not file.pth: its SHA-256 is .*, not {SHA256}. It was deleted"):
        fetch()
    assert not path.exists()
    assert path.with_name("file.pth.part").stat().st_size == 0


@pytest.mark.parametrize("extra", [-1, 1])
def test_wrong_size(server: FileServer, fetch: Fetch, path: Path, extra: int) -> None:
    """A file of another size is refused before it is downloaded."""
    server.content = (CONTENT + b"x")[: len(CONTENT) + extra]
    with pytest.raises(
        StartupError, match=rf"is not file.pth: it has {len(CONTENT) + extra} bytes, not {len(CONTENT)}"
    ):
        fetch()
    assert not path.exists()


def test_endless_answer(server: FileServer, fetch: Fetch, path: Path) -> None:
    """An answer of unstated length is cut off at the size of the file."""
    server.content = CONTENT + b"x"
    server.states_length = False
    with pytest.raises(StartupError, match="more than"):
        fetch()
    assert not path.exists()


def test_part_that_is_longer_than_the_file(fetch: Fetch, path: Path) -> None:
    """A part that is too long is of something else, and is replaced."""
    leave_part(path, CONTENT + b"x")
    assert fetch().read_bytes() == CONTENT


def test_part_that_the_server_cannot_continue(server: FileServer, fetch: Fetch, path: Path) -> None:
    """A part beyond the end of what the server has leads to an error about its size, not about ranges."""
    server.content = CONTENT[:500]
    leave_part(path, CONTENT[:1000])
    with pytest.raises(StartupError, match="it has 500 bytes"):
        fetch()


@pytest.mark.parametrize(("status", "cause"), [(404, "Not Found"), (503, "Service Unavailable")])
def test_refused_by_the_server(server: FileServer, fetch: Fetch, status: int, cause: str) -> None:
    """What a server refuses with is repeated, along with what to do."""
    server.refuses_with = status
    with pytest.raises(StartupError, match=rf"Cannot download .*: {cause}\. Check the network, name a mirror"):
        fetch()


def test_connection_refused(path: Path) -> None:
    """A server that is not there is one line that says what to do."""
    url = f"http://127.0.0.1:{free_port()}/file.pth"
    with pytest.raises(StartupError, match=r"Cannot download .*refused.*--weights-url, or put the file at"):
        download(url, path, size_bytes=1, sha256=SHA256)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "weights/"])
def test_other_schemes(url: str, path: Path) -> None:
    """Only https and http are downloaded from."""
    with pytest.raises(StartupError, match="must start with https:// or http://"):
        download(url, path, size_bytes=1, sha256=SHA256)


def test_folder_that_cannot_be_made(server: FileServer, tmp_path: Path) -> None:
    """A place that cannot be written to is one line that names it."""
    (tmp_path / "weights").write_text("a file, not a folder")
    with pytest.raises(StartupError, match=r"Cannot write .*weights/file.pth.part"):
        download(server.base_url, tmp_path / "weights" / "file.pth", size_bytes=1, sha256=SHA256)


def test_processes_take_turns(server: FileServer, path: Path) -> None:
    """Of several processes that want one file at once, one downloads it and all succeed."""
    program = (
        "import sys; from pathlib import Path; from sam.downloads import download\n"
        f"download(sys.argv[1], Path(sys.argv[2]), size_bytes={len(CONTENT)}, sha256='{SHA256}')"
    )
    command = [sys.executable, "-c", program, server.base_url, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(timeout=30) for process in processes] == [0, 0, 0]
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.ranges == [""]
