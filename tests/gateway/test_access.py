"""API keys: where they may be, whose are accepted, and that they are never written down."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.gateway.stack import Stack, as_image, picture, running_stack

SEGMENT, EMBED = "/sam/segment_image", "/sam/embed_image"
SECRET = "open-sesame"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway, an encoder and a decoder that admit the holder of one key."""
    with running_stack(tmp_path_factory.mktemp("keys"), keys=(SECRET,)) as stack:
        yield stack


def body(**extra: object) -> dict[str, object]:
    """Return a request that is fine but for its key."""
    return {"image": as_image(picture()), "point_coords": [[20, 10]], **extra}


def test_without_a_key_nothing_is_answered(guarded: Stack) -> None:
    """No key and a wrong key get 401 UNAUTHENTICATED, before any service is asked."""
    guarded.reset()
    for path in (SEGMENT, SEGMENT + "?api_key=wrong", SEGMENT + "?api_key="):
        answer = guarded.http.post(path, json=body())
        assert (answer.status_code, answer.json()["reason"]) == (401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert not guarded.decoder.calls


@pytest.mark.parametrize(
    ("path", "headers", "extra"),
    [
        (f"{SEGMENT}?api_key={SECRET}", {}, {}),
        (SEGMENT, {"Authorization": f"Bearer {SECRET}"}, {}),
        (SEGMENT, {"Authorization": f"bearer  {SECRET}"}, {}),
        (SEGMENT, {}, {"api_key": SECRET}),
        (f"{SEGMENT}?api_key={SECRET}", {"Authorization": "Bearer wrong"}, {"api_key": "wrong"}),
        (SEGMENT, {"Authorization": f"Bearer {SECRET}"}, {"api_key": "wrong"}),
        (f"{SEGMENT}?api_key=", {}, {"api_key": SECRET}),
    ],
)
def test_a_key_is_found_in_query_then_header_then_body(
    guarded: Stack, path: str, headers: dict[str, str], extra: dict[str, str]
) -> None:
    """The query's key goes before the header's, and that before the body's."""
    assert guarded.http.post(path, json=body(**extra), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "extra"),
    [
        (f"{SEGMENT}?api_key=wrong", {"Authorization": f"Bearer {SECRET}"}, {"api_key": SECRET}),
        (SEGMENT, {"Authorization": "Bearer wrong"}, {"api_key": SECRET}),
        (SEGMENT, {"Authorization": f"Basic {SECRET}"}, {}),
        (SEGMENT + "?api_key=%C3%BC", {}, {}),
    ],
)
def test_a_wrong_key_is_not_made_up_for_by_a_later_one(
    guarded: Stack, path: str, headers: dict[str, str], extra: dict[str, str]
) -> None:
    """The first key found decides."""
    assert guarded.http.post(path, json=body(**extra), headers=headers).status_code == 401


def test_other_routes_ask_for_the_key_as_well(guarded: Stack) -> None:
    """Stored embeddings and models need the key, in the query or the header."""
    guarded.http.post(
        f"{EMBED}?api_key={SECRET}", json={"image": as_image(picture()), "image_id": "a", "format": "none"}
    )
    for path in ("/sam/embeddings/a", "/sam/embeddings/a.npy", "/model/registry"):
        assert guarded.http.get(path).status_code == 401
        assert guarded.http.get(f"{path}?api_key={SECRET}").status_code == 200
        assert guarded.http.get(path, headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200


def test_surroundings_need_no_key(guarded: Stack) -> None:
    """Probes, scrapers and the documentation are open."""
    for path in ("/", "/info", "/healthz", "/readiness", "/metrics", "/docs", "/openapi.json"):
        assert guarded.http.get(path).status_code == 200


def test_the_key_reaches_the_services_as_the_tenant(stack: Stack) -> None:
    """Key and request id travel in the metadata of every call."""
    stack.http.post(f"{SEGMENT}?api_key=mine", json=body(), headers={"X-Request-ID": "r-1"})
    for metadata in stack.decoder.metadata:
        assert (metadata["authorization"], metadata["x-request-id"]) == ("Bearer mine", "r-1")


@pytest.mark.usefixtures("logs_on_stderr")
def test_keys_are_never_logged(stack: Stack, capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever a key is sent, no line that is written holds it; nor does the error of a body that cannot be read."""
    answers: list[httpx2.Response] = []
    for path, headers, extra in (
        (f"{SEGMENT}?api_key={SECRET}", {}, {}),
        (SEGMENT, {"Authorization": f"Bearer {SECRET}"}, {}),
        (SEGMENT, {}, {"api_key": SECRET}),
        (f"{SEGMENT}?api_key={SECRET}", {}, {"format": "xml", "api_key": SECRET}),
        (f"/nothing?api_key={SECRET}", {}, {}),
    ):
        answers.append(stack.http.post(path, json=body(**extra), headers=headers))
    written = "".join(capfd.readouterr())
    assert "/sam/segment_image" in written
    assert SECRET not in written
    assert all(SECRET not in answer.text for answer in answers)
