"""Whatever is sent, the answer is never a fault of ours."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.schemas import SegmentImageBody
from tests.gateway.stack import Stack, as_image, picture

FIELDS = sorted(SegmentImageBody.model_fields)
PATHS = ["/sam/embed_image", "/sam/segment_image", "/sam2/embed_image", "/sam2/segment_image"]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "a", "json", "binary", "base64", "url", "###", "\0", "x" * 300, "k\u00fc"]),
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))
points = st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=3)
wild = st.dictionaries(st.sampled_from(FIELDS), values | points, max_size=6)

# The stack is one for all examples, and clean enough: what one example stores is nothing to the next.
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.sampled_from(PATHS), wild)
@example("/sam/segment_image", {"image_id": "a", "point_coords": [[1e300, -1e300]]})
@example("/sam/segment_image", {"image_id": "a", "mask_threshold": 1e300, "box": [1, 2, 3, 4]})
@example("/sam/segment_image", {"image_id": "\U0001f600\0", "box": [1e39, 2, 3, 4]})
@example("/sam/segment_image", {"embeddings": {"a": 1}, "orig_im_size": [1, 1], "box": [1, 2, 3, 4]})
@example("/sam/segment_image", {"image_id": "a", "mask_input": {"a": [1]}})
@relaxed
def test_no_body_is_a_fault_of_ours(stack: Stack, path: str, body: dict[str, Any]) -> None:
    """Any JSON in any field gets an answer below 500, in our shape."""
    content = orjson.dumps({"image": as_image(picture()), **body}, option=orjson.OPT_NON_STR_KEYS)
    answer = stack.http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code < 500, (body, answer.text[:300])
    if answer.status_code >= 400:
        assert {"message", "reason", "request_id"} <= set(answer.json())


@given(st.sampled_from(PATHS), st.binary(max_size=200))
@relaxed
def test_no_bytes_are_a_fault_of_ours(stack: Stack, path: str, body: bytes) -> None:
    """Any bytes that call themselves JSON get 422, or whatever they mean."""
    answer = stack.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404, 422)


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.strip("./")))
@relaxed
def test_any_image_id_can_be_looked_up(stack: Stack, image_id: str) -> None:
    """An image_id of any characters is stored, found under its own path, and forgotten."""
    embedded = stack.http.post(
        "/sam/embed_image",
        content=orjson.dumps({"image": as_image(picture()), "image_id": image_id, "format": "none"}),
        headers={"content-type": "application/json"},
    )
    assert embedded.json()["image_id"] == image_id
    path = "/sam/embeddings/" + "".join(f"%{byte:02X}" for byte in image_id.encode())
    described = stack.http.get(path)
    if not image_id.endswith(".npy"):
        assert described.json()["image_id"] == image_id
    assert stack.http.delete(path).status_code == 204
