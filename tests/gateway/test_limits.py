"""Bounds on what is sent and on how long it may take, and what happens to work that nobody waits for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from sam.v1.encoder_service_pb2 import PRIORITY_BULK, PRIORITY_INTERACTIVE
from tests.gateway.stack import PATIENCE_S, Stack, as_image, picture, running_stack

SEGMENT = "/sam/segment_image"
LIMIT = 20_000
POINT = {"point_coords": [[20, 10]]}


@pytest.fixture(scope="module")
def tight() -> Iterator[Stack]:
    """A gateway with small bounds."""
    with running_stack(body_max_bytes=LIMIT, body_timeout_s=2) as stack:
        yield stack


def connection(stack: Stack) -> socket.socket:
    """Connect without a client library in between."""
    return socket.create_connection(("127.0.0.1", stack.port), timeout=PATIENCE_S)


def head(length: int | None, path: str = SEGMENT) -> bytes:
    """Return the head of a request; without a length its body comes in chunks."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n{size}\r\n\r\n".encode()


def answer_of(stream: socket.socket) -> tuple[int, dict[str, object]]:
    """Read one answer: its status and its JSON."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = stream.recv(65536)
        assert received, "the connection was closed without an answer"
        data += received
    top, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in top.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += stream.recv(65536)
    return int(top.split()[1]), json.loads(body)


def test_a_body_that_says_it_is_too_large_is_refused_unread(tight: Stack) -> None:
    """A Content-Length over the bound gets 413 before a byte of the body was sent."""
    with connection(tight) as stream:
        stream.sendall(head(10**12))
        status, body = answer_of(stream)
    assert (status, body["reason"]) == (413, "REQUEST_TOO_LARGE")
    assert str(LIMIT) in str(body["message"])


def test_a_body_that_turns_out_too_large_is_refused(tight: Stack) -> None:
    """A chunked body is refused as soon as it is over the bound, though it has not ended."""
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    with connection(tight) as stream:
        stream.sendall(head(None) + chunk * 6)
        status, body = answer_of(stream)
    assert (status, body["reason"]) == (413, "REQUEST_TOO_LARGE")


def test_a_client_library_gets_to_read_the_refusal(tight: Stack) -> None:
    """A client that sends all of its large body before it reads gets the 413 and not a reset."""
    answer = tight.http.post(SEGMENT, content=b" " * (40 * LIMIT), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_body_that_arrives_too_slowly_is_given_up(tight: Stack) -> None:
    """A body that does not arrive in time gets 504 DEADLINE_EXCEEDED."""
    with connection(tight) as stream:
        stream.sendall(head(100) + b"{")
        status, body = answer_of(stream)
    assert (status, body["reason"]) == (504, "DEADLINE_EXCEEDED")


def test_a_head_that_is_too_large_is_refused(tight: Stack) -> None:
    """A header line without end gets 431 once it is over the bound, and the client gets to read that."""
    with connection(tight) as stream:
        stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\nX-Long: " + b"a" * 200_000)
        status, body = answer_of(stream)
    assert (status, body["reason"]) == (431, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n"])
def test_a_head_that_never_ends_is_given_up(tight: Stack, sent: bytes) -> None:
    """A connection on which no whole head arrives is closed."""
    with connection(tight) as stream:
        stream.sendall(sent)
        assert stream.recv(1) == b""


def test_heads_are_bounded_each(tight: Stack) -> None:
    """Many requests on one connection may have more headers together than one may have."""
    with connection(tight) as stream:
        for _ in range(8):
            stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n")
            assert answer_of(stream)[0] == 200


def test_all_bodies_together_are_bounded() -> None:
    """What would take the bodies held over their bound gets 429 with Retry-After; afterwards there is room again."""
    with running_stack(bodies_max_bytes=25_000) as narrow:

        def status_becomes(expected: int) -> httpx2.Response:
            until = time.monotonic() + PATIENCE_S
            while True:
                answer = narrow.http.post(SEGMENT, content=b" " * 6_000, headers={"content-type": "application/json"})
                if answer.status_code == expected:
                    return answer
                assert time.monotonic() < until

        with connection(narrow) as holding:
            holding.sendall(head(20_000) + b" " * 19_999)
            refused = status_becomes(429)
        assert (refused.json()["reason"], refused.headers["retry-after"]) == ("OVERLOADED", "1")
        status_becomes(422)


def test_requests_worked_on_are_bounded() -> None:
    """Over the bound a request gets 429 at once, health is answered on, and a body that only arrives takes no place."""
    with running_stack(gateway_max_requests=1) as narrow:
        narrow.decoder.held = True
        body = json.dumps({"image_id": "a", **POINT}).encode()
        with connection(narrow) as arriving, connection(narrow) as working:
            arriving.sendall(head(100) + b"{")
            working.sendall(head(len(body)) + body)
            narrow.wait(narrow.decoder.entered)
            refused = narrow.http.post(SEGMENT, content=body, headers={"content-type": "application/json"})
            assert (refused.status_code, refused.json()["reason"]) == (429, "OVERLOADED")
            assert refused.headers["retry-after"] == "1"
            assert narrow.http.get("/healthz").status_code == 200
        narrow.wait(narrow.decoder.cancelled)


@pytest.mark.parametrize(
    "body",
    [
        {"image_id": "a", "point_coords": [[1, 2]] * 1025},
        {"image_id": "a", "boxes": [[1, 2, 3, 4]] * 1025},
        {"image_id": "a", "prompts": [{"box": [1, 2, 3, 4]}] * 1025},
        {"image_id": "a", "boxes": [[1, 2, 3, 4]] * 600, "prompts": [{"box": [1, 2, 3, 4]}] * 600},
    ],
)
def test_lists_are_bounded(stack: Stack, body: dict[str, object]) -> None:
    """More points or prompts than any decoder takes get 413, whatever the elements are."""
    answer = stack.http.post(SEGMENT, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (413, "REQUEST_TOO_LARGE")


def test_binary_answers_are_bounded() -> None:
    """Masks that would unpack to more than the bound get 413 before they are unpacked."""
    with running_stack(answer_max_bytes=2**20) as small:
        body = {"image": as_image(picture(1000, 1000)), "boxes": [[1, 2, 3, 4]] * 2, "format": "binary"}
        answer = small.http.post(SEGMENT, json=body)
        assert (answer.status_code, answer.json()["reason"]) == (413, "REQUEST_TOO_LARGE")
        assert small.http.post(SEGMENT, json={**body, "format": "rle"}).status_code == 200


def test_the_deadline_travels_to_the_services(stack: Stack) -> None:
    """The time left of a request, minus a margin, is the time-out of its calls."""
    body = {"image": as_image(picture()), **POINT}
    assert stack.http.post(SEGMENT, json=body, headers={"X-Request-Timeout-Ms": "30000"}).status_code == 200
    assert all(15.0 < seconds < 30.0 for seconds in stack.decoder.timeouts + stack.encoder.timeouts)
    assert stack.http.post(SEGMENT, json=body, headers={"X-Request-Timeout-Ms": "999999999"}).status_code == 200
    assert stack.decoder.timeouts[-1] < 120.0


@pytest.mark.parametrize(
    ("header", "bulk"),
    [
        ("u=7", True),
        ("i, u=4", True),
        ("u=5, i", True),
        ("u=3", False),
        ("u=0;x=1", False),
        ("", False),
        ("u=8", False),
        ("mu=7", False),
    ],
)
def test_the_priority_travels_to_the_encoder(stack: Stack, header: str, bulk: bool) -> None:
    """A request less urgent than most by RFC 9218 is embedded in bulk; a header that cannot be read changes nothing."""
    body = {"image": as_image(picture()), "format": "none"}
    assert stack.http.post("/sam/embed_image", json=body, headers={"Priority": header}).status_code == 200
    assert stack.encoder.calls[-1].priority == (PRIORITY_BULK if bulk else PRIORITY_INTERACTIVE)


def test_a_passed_deadline_is_told_in_time(stack: Stack) -> None:
    """A call that hangs past the caller's deadline gets 504 at the deadline, and is cancelled at the service."""
    stack.decoder.held = True
    started = time.monotonic()
    body = {"image_id": "a", **POINT}
    answer = stack.http.post(SEGMENT, json=body, headers={"X-Request-Timeout-Ms": "300"})
    assert (answer.status_code, answer.json()["reason"]) == (504, "DEADLINE_EXCEEDED")
    assert time.monotonic() - started < PATIENCE_S / 2
    stack.wait(stack.decoder.cancelled)


def test_a_client_that_leaves_cancels_its_call(stack: Stack) -> None:
    """When the connection is closed while a decoder works, the call there is cancelled."""
    stack.decoder.held = True
    body = json.dumps({"image_id": "a", **POINT}).encode()
    with connection(stack) as stream:
        stream.sendall(head(len(body)) + body)
        stack.wait(stack.decoder.entered)
    stack.wait(stack.decoder.cancelled)


def test_a_client_that_leaves_while_sending_is_forgotten(stack: Stack) -> None:
    """A connection closed in the middle of a body reaches no service, and the next request is answered."""
    with connection(stack) as stream:
        stream.sendall(head(1000) + b'{"image_id"')
    assert stack.http.get("/healthz").status_code == 200
    assert not stack.decoder.calls


def test_requests_do_not_wait_for_each_other(stack: Stack) -> None:
    """While one request hangs in the decoder, health, errors and embeds are answered."""
    stack.decoder.held = True
    body = json.dumps({"image_id": "a", **POINT}).encode()
    with connection(stack) as stream:
        stream.sendall(head(len(body)) + body)
        stack.wait(stack.decoder.entered)
        assert stack.http.get("/healthz").status_code == 200
        embedded = stack.http.post("/sam/embed_image", json={"image": as_image(picture()), "format": "none"})
        assert embedded.status_code == 200


def test_many_requests_at_once_get_their_own_answers(stack: Stack) -> None:
    """Of 40 concurrent requests about different pictures, each is answered about its own."""
    wrong: list[object] = []

    def ask(shade: int) -> None:
        image = picture(40 + shade, 50)
        answer = stack.http.post(SEGMENT, json={"image": as_image(image), **POINT}).json()
        if answer.get("original_size") != [40 + shade, 50]:
            wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(shade,)) for shade in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wrong == []
