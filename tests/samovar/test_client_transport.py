"""The client against servers that misbehave."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from samovar.client import AnswerUnreadable, SamClient, ServerUnreachable
from samovar.client.errors import DeadlineExceeded, InternalError, ModelNotServed, Overloaded, RequestInvalid
from tests.conftest import free_port
from tests.samovar.clients import http_client
from tests.samovar.scripted_server import Scripted, ScriptedServer, scripted_server

MODELS = Scripted(body=b'{"models": []}')


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that does what the test says."""
    with scripted_server() as running:
        yield running


@pytest.fixture(params=["blocking", "async"])
def client(request: pytest.FixtureRequest, server: ScriptedServer) -> Iterator[SamClient]:
    """A client of it."""
    with http_client(request.param, server.url, timeout_s=20) as made:
        yield made


@pytest.mark.parametrize("reason", [(429, "OVERLOADED"), (503, "STORE_UNAVAILABLE")])
def test_a_busy_server_is_asked_again(client: SamClient, server: ScriptedServer, reason: tuple[int, str]) -> None:
    """After 429 and 503 the same request is sent again, not before `Retry-After`."""
    server.script = [Scripted.error(*reason, Retry_After="1"), MODELS]
    started = time.monotonic()
    assert client.models() == []
    assert time.monotonic() - started >= 1
    assert len(server.requests) == 2


def test_an_error_is_read_with_all_it_says(client: SamClient, server: ScriptedServer) -> None:
    """Reason, message, field and metadata become an exception."""
    server.script = [Scripted.error(400, "MODEL_NOT_SERVED", "another one is served")]
    with pytest.raises(ModelNotServed) as caught:
        client.models()
    error = caught.value
    assert (error.message, error.field) == ("another one is served", "box")
    assert error.metadata == {"served": "m", "request_id": "r1"}


@pytest.mark.parametrize(("status", "kind"), [(418, RequestInvalid), (507, InternalError)])
def test_a_reason_of_a_newer_server(
    client: SamClient, server: ScriptedServer, status: int, kind: type[Exception]
) -> None:
    """A reason that this client does not know is the caller's mistake or the server's fault, by its status."""
    server.script = [Scripted.error(status, "TEAPOT")]
    with pytest.raises(kind):
        client.models()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"models": 3}', b"\xff"])
def test_what_is_no_samovar(client: SamClient, server: ScriptedServer, body: bytes) -> None:
    """An answer that is none of ours says to check the address, whatever its status."""
    server.script = [Scripted(body=body), Scripted(404, body)]
    for _ in range(2):
        with pytest.raises(AnswerUnreadable, match="Check the address"):
            client.models()


def test_answers_that_lack_something(client: SamClient, server: ScriptedServer) -> None:
    """Objects without the fields of an answer are no answers."""
    for call in (
        lambda: client.embed(b"x"),
        lambda: client.find("x"),
        lambda: client.segment(b"x", box=[0, 0, 1, 1]),
        lambda: client.embedding("x"),
    ):
        with pytest.raises(AnswerUnreadable):
            call()
    server.script = [Scripted(body=b"PK\x03\x04", headers={"Content-Type": "application/octet-stream"})]
    with pytest.raises(AnswerUnreadable):
        client.segment(b"x", box=[0, 0, 1, 1], logits=True)


def test_a_proxy_without_a_server_is_tried_again(client: SamClient, server: ScriptedServer) -> None:
    """A 502 of a proxy is a server that restarts."""
    server.script = [Scripted(502, b"<html>Bad Gateway"), MODELS]
    assert client.models() == []


def test_a_proxy_that_limits_is_waited_for(client: SamClient, server: ScriptedServer) -> None:
    """A 429 of a proxy, which knows no reasons of ours, is overload all the same."""
    server.script = [Scripted(429, b"<html>Too Many Requests", {"Retry-After": "1"}), MODELS]
    started = time.monotonic()
    assert client.models() == []
    assert time.monotonic() - started >= 1


def test_a_broken_connection_is_made_again(client: SamClient, server: ScriptedServer) -> None:
    """A connection that ends without an answer costs another attempt, not the call."""
    server.script = [Scripted(breaks=True), MODELS]
    assert client.models() == []


def test_a_deletion_whose_answer_was_lost_has_happened(client: SamClient, server: ScriptedServer) -> None:
    """When the second attempt finds nothing, the first one deleted it."""
    server.script = [Scripted(breaks=True), Scripted.error(404, "EMBEDDING_NOT_FOUND")]
    assert client.forget("x")
    assert not client.forget("x")


@pytest.mark.parametrize("answer", [Scripted(hangs=True), Scripted(body=b" " * 1000, trickle_s=0.05)])
def test_no_call_outlasts_its_deadline(client: SamClient, server: ScriptedServer, answer: Scripted) -> None:
    """A server that is silent, or sends a byte now and then, is given up at the deadline."""
    server.script = [answer]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.models(timeout_s=0.5)
    assert time.monotonic() - started < 20


def test_an_upload_does_not_outlast_its_deadline(client: SamClient, server: ScriptedServer) -> None:
    """A server that takes a large picture a spoonful at a time is given up at the deadline."""
    server.spoon_s = 0.1
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.embed(bytes(20_000_000), timeout_s=1)
    assert time.monotonic() - started < 20


def test_the_server_is_told_the_deadline(client: SamClient, server: ScriptedServer) -> None:
    """Every attempt says how long the client still waits."""
    server.script = [Scripted.error(429, "OVERLOADED", Retry_After="1"), MODELS]
    client.models(timeout_s=30)
    first, second = (int(headers["x-request-timeout-ms"]) for _, _, headers, _ in server.requests)
    assert 20_000 < first <= 30_000
    assert second <= first - 1_000


def test_the_last_word_of_a_server_that_stays_busy(client: SamClient, server: ScriptedServer) -> None:
    """At the deadline the server's own error is raised."""
    server.script = [Scripted.error(429, "OVERLOADED", "still busy", Retry_After="1")]
    with pytest.raises(Overloaded, match="still busy"):
        client.models(timeout_s=4)
    assert len(server.requests) >= 2


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_nobody_there(kind: str) -> None:
    """A wrong address is found out soon, and named."""
    url = f"http://127.0.0.1:{free_port()}"
    with http_client(kind, url) as client, pytest.raises(ServerUnreachable, match=url):
        client.models()
