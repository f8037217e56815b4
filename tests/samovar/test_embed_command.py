"""`samovar embed`, against a gateway in front of an encoder that counts."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sam.errors import InternalError
from samovar.embed import command
from tests.conftest import free_port
from tests.gateway.stack import Stack, picture
from tests.samovar.processes import SAMOVAR, environment, wait_until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with six pictures in two levels, and other files."""
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for shade in range(6):
        place = pictures / "more" if shade > 3 else pictures
        (place / f"{shade}.{'PNG' if shade % 2 else 'png'}").write_bytes(picture(shade=shade))
    (pictures / "notes.txt").write_text("no picture")
    return pictures


def run(stack: Stack, *arguments: str | Path) -> Result:
    """Run the command."""
    return CliRunner().invoke(command, ["--server", f"http://127.0.0.1:{stack.port}", *map(str, arguments)])


def test_a_folder(stack: Stack, folder: Path) -> None:
    """The pictures in and below a folder are embedded, other files are not, and each can be segmented by its digest."""
    done = run(stack, folder)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "6 embedded\n")
    digests = {hashlib.sha256(picture(shade=shade)).hexdigest() for shade in range(6)}
    assert {digest for _, digest in stack.store.embeddings} == digests
    assert {name for _, name in stack.store.aliases} == digests


def test_what_is_stored_is_not_sent_again(stack: Stack, folder: Path) -> None:
    """A second run sends only what is new: a picture that was added, and one that was changed under its name."""
    run(stack, folder, "--image-id", "name")
    (folder / "new.png").write_bytes(picture(shade=99))
    (folder / "0.png").write_bytes(picture(shade=98))
    stack.encoder.calls.clear()
    done = run(stack, folder, "--image-id", "name")
    assert done.stderr == "2 embedded, 5 stored already\n"
    assert sorted(call.image_id for call in stack.encoder.calls) == ["0.png", "new.png"]


def test_names(stack: Stack, folder: Path) -> None:
    """A picture may be called by its path; one from a URL is called by that."""
    stack.encoder.pages["https://example.org/a.png"] = picture()
    done = run(stack, folder / "1.PNG", "https://example.org/a.png", "--image-id", "path", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = {str(folder / "1.PNG"), "https://example.org/a.png"}
    assert {line["picture"] for line in lines} == {line["image_id"] for line in lines} == names
    assert {line["outcome"] for line in lines} == {"embedded"}
    # And again, from its URL alone.
    again = run(stack, "https://example.org/a.png")
    assert again.stderr == "1 stored already\n"


def test_a_picture_that_is_refused_does_not_stop_the_others(stack: Stack, folder: Path) -> None:
    """Broken and missing files are named, the others are embedded, and the exit status is 3."""
    (folder / "broken.png").write_text("no picture")
    done = run(stack, folder, folder / "missing.png", "--concurrency", "2")
    assert done.exit_code == 3
    assert done.stderr.splitlines()[-1] == "6 embedded, 2 refused"
    assert "broken.png: refused: Could not load input image" in done.stderr
    assert "missing.png: refused:" in done.stderr
    as_json = run(stack, folder / "broken.png", "--json")
    assert json.loads(as_json.stdout)["error"]["reason"] == "IMAGE_UNDECODABLE"


def test_a_fault_of_the_server(stack: Stack, folder: Path) -> None:
    """What failed for the server's sake may work later: exit status 1."""
    stack.encoder.error = InternalError("Something failed.")
    done = run(stack, folder)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "6 failed"


def test_no_server_and_no_pictures(folder: Path, tmp_path: Path) -> None:
    """Without a server the run ends at once with status 1; without a picture with 2."""
    url = f"http://127.0.0.1:{free_port()}"
    done = CliRunner().invoke(command, ["--server", url, str(folder)])
    assert done.exit_code == 1
    assert done.stderr.count(url) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    done = CliRunner().invoke(command, [str(empty)])
    assert done.exit_code == 2
    assert "There are no pictures in" in done.stderr


def test_an_interrupted_run_is_taken_up_again(stack: Stack, folder: Path) -> None:
    """Ctrl-C ends a run with status 130; the next one does what is left."""
    url = f"http://127.0.0.1:{stack.port}"
    # A picture that takes for ever to be read keeps the first run from ending.
    pipe = folder / "pipe.png"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [*SAMOVAR, "embed", "--server", url, str(folder)],
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell has what it runs in the background ignore Ctrl-C, and that is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: len(stack.store.embeddings) == 6, process)
    assert _connections(process.pid, stack.port)
    process.send_signal(signal.SIGINT)
    # Once it takes notice, it leaves the server. Reading is a thread, which ends when there is something to read.
    wait_until(lambda: not _connections(process.pid, stack.port), process)
    with pipe.open("wb") as writer:
        writer.write(b"x")
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "Interrupted. The same command goes on where this one stopped.\n")
    pipe.unlink()
    assert run(stack, folder).stderr == "6 stored already\n"


def _connections(pid: int, port: int) -> int:
    """Return how many connections a process has to a port of this machine."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    # Of a line the third field is the other end, the tenth the socket.
    there = {f"socket:[{line[9]}]" for line in map(str.split, lines) if int(line[2].partition(":")[2], 16) == port}
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(descriptor) in there
    return found


def test_progress_on_a_terminal(stack: Stack, folder: Path) -> None:
    """On a terminal a bar counts up to the last picture."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*SAMOVAR, "embed", "--server", f"http://127.0.0.1:{stack.port}", str(folder)],
        env=environment(TERM="xterm", COLUMNS="80"),
        stdout=subprocess.DEVNULL,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:
        # What reading a terminal ends with when its last user has gone.
        pass
    finally:
        os.close(leader)
    assert process.wait(30) == 0
    assert b"6/6" in shown
    assert b"6 embedded" in shown
