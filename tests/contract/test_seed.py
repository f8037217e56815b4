"""The snippets of the document that clients were written from, with its two typing errors corrected."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.stack import Stack, picture

URL = "https://i.imgur.com/Q6lDy8B.jpg"

EMBED = """
infer_payload = {
    "image": {
        "type": "url",
        "value": "https://i.imgur.com/Q6lDy8B.jpg",
    },
    "image_id": "example_image_id",
}

res = requests.post(
    f"{base_url}/sam/embed_image?api_key={api_key}",
    json=infer_payload,
)

embeddings = res.json()['embeddings']
"""

SEGMENT = """
infer_payload = {
    "image": {
        "type": "url",
        "value": "https://i.imgur.com/Q6lDy8B.jpg",
    },
    "point_coords": [[380, 350]],
    "point_labels": [1],
    "image_id": "example_image_id",
}

res = requests.post(
    f"{base_url}/sam/embed_image?api_key={api_key}",
    json=infer_payload,
)

masks = res.json()['masks']
"""

SEGMENT_CACHED = """
infer_payload = {
    "point_coords": [[380, 350], [80, 300], [700, 250]],
    "point_labels": [1, 0, 0],
    "image_id": "example_image_id",
}

res = requests.post(
    f"{base_url}/sam/embed_image?api_key={api_key}",
    json=infer_payload,
)

masks = res.json()['masks']
"""


@pytest.mark.parametrize("api_key", ["", "a-key", "<YOUR API KEY HERE>"])
def test_the_snippets_run_as_printed(stack: Stack, api_key: str) -> None:
    """Embed, segment, and segment by image_id alone, with and without a key: one encode and the masks asked for."""
    stack.encoder.pages[URL] = picture(600, 800)
    names: dict[str, Any] = {"requests": stack.http, "base_url": "", "api_key": api_key}
    for snippet in (EMBED, SEGMENT, SEGMENT_CACHED):
        exec(snippet, names)  # noqa: S102 (the text above)
        assert names["res"].status_code == 200
    assert len(names["embeddings"][0]) == 256
    assert len(names["masks"]) == 1
    assert [376.0, 346.0] in names["masks"][0]
    assert len(stack.encoder.calls) == 1


def test_the_same_on_the_right_route(stack: Stack) -> None:
    """On /sam/segment_image the snippets get the same masks."""
    stack.encoder.pages[URL] = picture(600, 800)
    names: dict[str, Any] = {"requests": stack.http, "base_url": "", "api_key": "k"}
    exec(SEGMENT, names)  # noqa: S102 (the text above)
    wrong = names["masks"]
    exec(SEGMENT.replace("/sam/embed_image", "/sam/segment_image"), names)  # noqa: S102 (the text above)
    assert names["masks"] == wrong
