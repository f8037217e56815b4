"""The harness itself: a checker that finds what is planted, and a proxy that does what it is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.checker import answered_twice, violations
from tests.faults.history import OK, Answer, History, Verb
from tests.faults.pictures import Picture, Reading, in_frame, picture, point
from tests.faults.proxy import ChaosProxy, Weather, chaos_proxy
from tests.faults.table import Row, as_markdown, write_into

A, B = picture("harness-a"), picture("harness-b")


class Written:
    """A history whose times are written by hand."""

    def __init__(self) -> None:
        self.history = History()

    def add(
        self,
        start: float,
        end: float,
        *,
        sent: Picture | None = None,
        shown: Picture | None = None,
        image_id: str = "x",
        tenant: str = "",
        status: str = OK,
        verb: Verb = "segment",
        at: tuple[int, int] | None = None,
    ) -> None:
        """Write down one request and its answer."""
        where = point(7)
        request = self.history.invoke("gateway", verb, tenant=tenant, image_id=image_id, picture=sent, point=where)
        request.invoked = start
        reading = Reading(shown.shown, at or in_frame(where)) if shown else None
        request.end(Answer(end, status, reading=reading, digest=shown.digest if shown else ""))

    @property
    def found(self) -> list[str]:
        """What the checker finds."""
        return violations(self.history)


def test_the_checker_finds_another_pictures_mask() -> None:
    """A mask of another picture than the one sent is cross-talk, and so is one of another prompt."""
    written = Written()
    written.add(1, 2, sent=A, shown=A)
    assert not written.found
    written.add(3, 4, sent=A, shown=B)
    assert len(written.found) == 2  # The mask and the digest.
    other = Written()
    other.add(1, 2, sent=A, shown=A, at=(9, 9))
    assert len(other.found) == 1


def test_the_checker_knows_what_a_name_may_stand_for() -> None:
    """A name stands for what it was last given before the request, or while it was answered; never for what it left."""
    written = Written()
    written.add(1, 2, sent=A, shown=A)
    written.add(3, 4, shown=A)
    written.add(5, 9, sent=B, shown=B)
    written.add(6, 7, shown=A)
    written.add(6, 8, shown=B)
    written.add(10, 11, shown=B)
    assert not written.found
    written.add(12, 13, shown=A)
    assert written.found


def test_the_checker_leaves_a_failed_bind_open_and_closes_a_deleted_one() -> None:
    """A bind that failed may have happened, then or later; after a deletion nothing older is left."""
    written = Written()
    written.add(1, 2, sent=A, shown=A)
    written.add(3, 4, sent=B, status="DEADLINE_EXCEEDED")
    written.add(5, 6, shown=A)
    written.add(7, 8, shown=B)
    assert not written.found
    deleted = Written()
    deleted.add(1, 2, sent=A, shown=A)
    deleted.add(3, 4, verb="forget")
    deleted.add(5, 6, shown=A)
    assert deleted.found


def test_the_checker_keeps_tenants_and_answers_apart() -> None:
    """Another tenant's bind does not count; a request without an answer, or with two, is a fault."""
    written = Written()
    written.add(1, 2, sent=A, shown=A, tenant="one")
    written.add(3, 4, shown=A, tenant="two")
    assert written.found
    history = History()
    request = history.invoke("gateway", "embed", tenant="", image_id="", picture=A, point=(0, 0))
    assert violations(history)
    request.end(Answer(1, OK))
    assert not violations(history)
    request.end(Answer(2, OK))
    assert violations(history)
    assert answered_twice(["a", "b", "a"]) == ["a"]


@contextmanager
def _echo() -> Iterator[int]:
    """Run a server that sends back what it gets, and that counts on nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(4096):
                        connection.sendall(data)
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[ChaosProxy]:
    """A proxy in front of an echo."""
    with _echo() as port, chaos_proxy(port) as running:
        yield running


def test_the_proxy_delays_stalls_and_heals(proxy: ChaosProxy) -> None:
    """Bytes come late when told so, not at all while stalled, and then all of them."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"first")
        assert client.recv(10) == b"first"
        proxy.to_server = Weather(latency_s=0.2)
        started = time.monotonic()
        client.sendall(b"late")
        assert client.recv(10) == b"late"
        assert time.monotonic() - started >= 0.2
        proxy.to_client = Weather(stalled=True)
        client.sendall(b"held")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(10)
        proxy.heal()
        client.settimeout(5)
        assert client.recv(10) == b"held"


def test_the_proxy_truncates_and_resets(proxy: ChaosProxy) -> None:
    """A cut ends a connection after the bytes that were let through; a reset ends it as one, and so does a refusal."""
    proxy.to_client = Weather(cut_after=4, cut="close")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"123456")
        assert client.recv(10) + client.recv(10) == b"1234"
    proxy.heal()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"x")
        assert client.recv(10) == b"x"
        assert proxy.reset_connections() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    assert (proxy.accepted, proxy.cuts) == (2, 2)


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    """Rows come in the order of their faults, and only the document's own table is replaced."""
    rows = [Row("F10", "b", "c", "0", "1", False), Row("F2", "a", "c", "0", "0", True)]
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- faults -->\nold\n<!-- /faults -->\nafter\n")
    write_into(document, "faults", rows, "note")
    text = document.read_text()
    assert text.startswith("before\n<!-- faults -->\nnote\n\n| fault |")
    assert text.endswith("<!-- /faults -->\nafter\n")
    assert as_markdown(rows).splitlines()[2:] == ["| F2 | a | c | 0 | 0 | yes |", "| F10 | b | c | 0 | 1 | **no** |"]
