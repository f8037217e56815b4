"""The documentation that the gateway serves about itself."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gateway import examples
from tests.gateway.stack import Stack, picture


@pytest.fixture
def schema(stack: Stack) -> dict[str, Any]:
    """The OpenAPI document."""
    document: dict[str, Any] = stack.http.get("/openapi.json").json()
    return document


def properties(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every field of every body, by its path."""
    for name, component in schema["components"]["schemas"].items():
        for field, description in component.get("properties", {}).items():
            yield f"{name}.{field}", description


def test_every_field_is_described(schema: dict[str, Any]) -> None:
    """Each field of each request and answer says what it is."""
    ours = [
        (path, value) for path, value in properties(schema) if not path.startswith(("HTTPValidation", "Validation"))
    ]
    assert len(ours) > 50
    assert [path for path, value in ours if not value.get("description")] == []


def test_every_route_and_parameter_is_described(schema: dict[str, Any]) -> None:
    """Each route has a summary and a description, and each query parameter says what it does."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)
            for parameter in operation.get("parameters", []):
                assert parameter["in"] == "path" or parameter.get("description"), (method, path, parameter["name"])


def test_every_documented_field_of_the_contract_is_there(schema: dict[str, Any]) -> None:
    """The bodies have the contract's fields under the contract's names."""
    known = {path for path, _ in properties(schema)}
    segment = (
        "image image_id sam_version_id api_key format point_coords point_labels box boxes prompts has_mask_input "
        "mask_input mask_input_format use_mask_input_cache embeddings embeddings_format orig_im_size multimask_output "
        "mask_threshold"
    )
    assert {f"SegmentImageBody.{name}" for name in segment.split()} <= known
    embed = "image image_id sam_version_id api_key format dtype"
    assert {f"EmbedImageBody.{name}" for name in embed.split()} <= known


EXAMPLES = [
    ("/sam/embed_image", examples.EMBED_IMAGE),
    ("/sam/segment_image", examples.SEGMENT_IMAGE),
    ("/sam2/embed_image", examples.SAM2_EMBED_IMAGE),
    ("/sam2/segment_image", examples.SAM2_SEGMENT_IMAGE),
]


def test_the_examples_work_when_tried_in_their_order(stack: Stack, schema: dict[str, Any]) -> None:
    """Every example of /docs, sent as it stands from top to bottom, is answered with 200."""
    stack.encoder.pages["https://i.imgur.com/Q6lDy8B.jpg"] = picture()
    for path, expected in EXAMPLES:
        content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert set(content["examples"]) == set(expected)
        for name, example in content["examples"].items():
            answer = stack.http.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text[:300])


def test_a_documented_answer_is_what_is_answered(stack: Stack, schema: dict[str, Any]) -> None:
    """The fields of an answer are those that its documentation lists, and the other way round."""
    body = examples.SEGMENT_IMAGE["picture"]["value"]
    answer = stack.http.post("/sam/segment_image", json=body).json()
    assert set(answer) == set(schema["components"]["schemas"]["SegmentImageAnswer"]["properties"])
    answer = stack.http.post("/sam/embed_image", json={"image": body["image"]}).json()
    assert set(answer) == set(schema["components"]["schemas"]["EmbedImageAnswer"]["properties"])
    model = stack.http.get("/model/registry").json()["models"][0]
    assert set(model) == set(schema["components"]["schemas"]["ModelAnswer"]["properties"])


def test_documented_errors_have_documented_fields(stack: Stack, schema: dict[str, Any]) -> None:
    """An error's fields are among those of its documentation."""
    answer = stack.http.post("/sam/segment_image", json={}).json()
    assert set(answer) <= set(schema["components"]["schemas"]["ValidationErrorAnswer"]["properties"])
    answer = stack.http.post("/sam/segment_image", json={"image_id": "x", "point_coords": [[1, 2]]}).json()
    assert set(answer) <= set(schema["components"]["schemas"]["ErrorAnswer"]["properties"])


def test_the_files_of_the_documentation_are_named(schema: dict[str, Any]) -> None:
    """Answers that are files are documented as such."""
    for path in ("/sam/embed_image", "/sam/segment_image"):
        assert "application/octet-stream" in schema["paths"][path]["post"]["responses"]["200"]["content"]


def test_the_example_picture_is_a_picture(stack: Stack) -> None:
    """The bundled example is a PNG of 64x48 pixels, and its embedding can be fetched as the documentation says."""
    stack.http.post("/sam/embed_image", json=examples.EMBED_IMAGE["first"]["value"])
    described = stack.http.get(f"/sam/embeddings/{examples.IMAGE_ID}").json()
    assert described["original_size"] == [48, 64]
    file = stack.http.get(f"/sam/embeddings/{examples.IMAGE_ID}.npy")
    assert np.load(io.BytesIO(file.content)).shape == (1, 256, 64, 64)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_needs_nothing_from_outside(stack: Stack, page: str) -> None:
    """The pages load only what this server has, and it has it."""
    html = stack.http.get(page).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert loaded
    for address in loaded:
        assert address.startswith("/"), address
        assert stack.http.get(address).status_code == 200
