"""Starts that must not succeed, and starts beside what an older model left."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import RedisServer, free_port, start_redis
from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import deployment, stub
from tests.faults.history import History
from tests.faults.pictures import picture
from tests.integration.processes import spawn

pytestmark = pytest.mark.faults

STARTED_WITHIN_S = 5.0
SERVICES = ("encoder_service", "decoder_service")


def test_f11_a_store_that_cannot_be_used_ends_the_start_with_one_line(tmp_path: Path, report: Report) -> None:
    """A wrong password, host or ACL is found out at start, and said in one line, within 5 s."""
    with _guarded_redis(tmp_path) as server:
        address = f"127.0.0.1:{server.port}/0"
        causes = {
            "wrong password": (f"redis://default:wrong@{address}", "password"),
            "no password": (f"redis://{address}", "password"),
            "user without rights": (f"redis://weak:weak@{address}", "ACL"),
            "closed port": (f"redis://127.0.0.1:{free_port()}/0", "cannot be"),
            "unknown host": ("redis://no-such-host.invalid:6379/0", "cannot be"),
            "silent host": (f"redis://{_silent_address()}/0", "cannot be"),
            "not a URL": ("http://somewhere", "redis://"),
        }
        bad, slowest = [], 0.0
        for module in SERVICES:
            for cause, (url, words) in causes.items():
                seconds, status, lines = _start(module, tmp_path, {**stub(), "SAMOVAR_REDIS_URL": url})
                slowest = max(slowest, seconds)
                said = [line for line in lines if line.startswith("Error:")]
                if status != 1 or len(said) != 1 or words not in said[0] or seconds > STARTED_WITHIN_S:
                    bad.append(f"{module}, {cause}: exit {status} after {seconds:.1f} s, {lines[-1:]}")
                if any("wrong@" in line for line in lines):
                    bad.append(f"{module}, {cause}: the password is in the log")
    report.row(
        "F11",
        injected=f"starts of encoder and decoder with: {', '.join(causes)}",
        counted="starts that did not end with one line that says why; the slowest",
        required=f"0 of {len(causes) * 2}; at most {STARTED_WITHIN_S:.0f} s",
        seen=f"{len(bad)} {'; '.join(bad)}; {slowest:.1f} s",
        held=not bad,
    )
    report.assert_held()


def test_f26_what_an_older_model_stored_is_not_used(tmp_path: Path, report: Report) -> None:
    """After an upgrade of the model, with Redis as it was, pictures are encoded anew and kept apart from the old."""
    server = start_redis(tmp_path)
    wanted = picture("f26")
    encodes, statuses, caches = [], [], []
    try:
        for version in ("1", "2"):
            history = History()
            folder = tmp_path / version
            with deployment(folder, encoders=1, decoders=1, environment=stub(version), redis=server) as running:

                async def scenario() -> None:
                    async with HttpClient(history, running.urls) as http:  # noqa: B023
                        statuses.append((await http.segment(None, "old")).answer.code)
                        caches.append((await http.segment(wanted, "old")).answer.cache)
                        await http.segment(None, "old")

                asyncio.run(scenario())
                assert_right(history)
                encodes.append(running.encodes(wanted.digest))
        with server.client() as client:
            kept = len(list(client.scan_iter(f"sam:v1:embedding:*{wanted.digest}*")))
    finally:
        server.stop()
    report.row(
        "F26",
        injected="another version of the model starts beside what the old one stored",
        counted="by name at once, old and new; X-Cache of the same picture; encodes by each; embeddings kept apart",
        required="404, 404; miss, miss; 1, 1; 2",
        seen=f"{', '.join(statuses)}; {', '.join(caches)}; {', '.join(map(str, encodes))}; {kept}",
        held=statuses == ["404", "404"] and caches == ["miss", "miss"] and encodes == [1, 1] and kept == 2,
    )
    report.assert_held()


def test_f27_a_checkpoint_that_is_missing_or_broken_is_never_served(tmp_path: Path, report: Report) -> None:
    """A checkpoint that is not there, not whole, or not the published one ends the start, and is named."""
    weights = tmp_path / "weights"
    weights.mkdir()
    name = "sam_vit_b_01ec64.pth"
    (weights / name).write_bytes(b"not what was published" * 1000)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(b"PK\x03\x04" + bytes(5000))
    nowhere = f"http://127.0.0.1:{free_port()}/"
    causes = {
        "missing": ({"SAMOVAR_CHECKPOINT": str(tmp_path / "gone.pth")}, "gone.pth"),
        "corrupt": ({"SAMOVAR_CHECKPOINT": str(torn)}, "torn.pth"),
        "wrong digest": ({"SAMOVAR_WEIGHTS_DIR": str(weights), "SAMOVAR_MODEL": "vit_b"}, name),
        "a stub that is none": ({"SAMOVAR_CHECKPOINT": "stub:"}, "stub"),
    }
    server = start_redis(tmp_path)
    bad = []
    try:
        for module in SERVICES:
            for cause, (settings, words) in causes.items():
                environment = {"SAMOVAR_WEIGHTS_URL": nowhere, "SAMOVAR_REDIS_URL": server.url, **settings}
                _, status, lines = _start(module, tmp_path, environment)
                said = [line for line in lines if line.startswith("Error:")]
                if status != 1 or len(said) != 1 or words not in said[0]:
                    bad.append(f"{module}, {cause}: exit {status}, {lines[-1:]}")
    finally:
        server.stop()
    report.row(
        "F27",
        injected=f"starts of encoder and decoder with a checkpoint that is: {', '.join(causes)}",
        counted="starts that did not end with one line that says which and why",
        required=f"0 of {len(causes) * 2}",
        seen=f"{len(bad)} {'; '.join(bad)}",
        held=not bad,
    )
    report.assert_held()


@contextmanager
def _guarded_redis(folder: Path) -> Iterator[RedisServer]:
    options = ["--requirepass", "right", "--user", "weak", "on", ">weak", "~sam:*", "+ping"]
    server = start_redis(folder, *options)
    try:
        yield server
    finally:
        server.stop()


def _silent_address() -> str:
    """Return an address of a net kept for documentation, where nobody answers."""
    return "192.0.2.1:6379"


def _start(module: str, folder: Path, environment: dict[str, str]) -> tuple[float, int, list[str]]:
    """Start a service that must not come up; return how long it took to end, its exit status and its output."""
    logs = folder / f"{module}-{time.monotonic_ns()}"
    logs.mkdir()
    started = time.monotonic()
    process = spawn(["-m", module, "--port", "0"], logs, 0, environment)
    try:
        status = process.popen.wait(60)
    finally:
        process.popen.kill()
    seconds = time.monotonic() - started
    lines = process.log.read_text().splitlines()
    shutil.rmtree(logs)
    return seconds, status, lines
