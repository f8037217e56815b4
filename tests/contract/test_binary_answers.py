"""Answers that are more than short JSON: embeddings, masks in every format, and what is sent back to refine them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco

from sam.tensors import from_tensor
from tests.gateway.drawn_masks import low_res_logits
from tests.gateway.fakes import features_of
from tests.gateway.stack import Stack, as_image, picture

SEGMENT, EMBED = "/sam/segment_image", "/sam/embed_image"
POINT: dict[str, Any] = {"point_coords": [[20, 10]], "point_labels": [1]}
BODY: dict[str, Any] = {"image": as_image(picture()), **POINT}


def expected_mask() -> npt.NDArray[np.bool_]:
    """Return the mask that the fake decoder draws for `POINT`."""
    mask = np.zeros((48, 64), np.bool_)
    mask[6:15, 16:25] = True
    return mask


def ring_with_island() -> npt.NDArray[np.bool_]:
    """Return a mask with a hole and two parts."""
    mask = np.zeros((48, 64), np.bool_)
    mask[4:40, 4:50] = True
    mask[10:30, 10:40] = False
    mask[15:20, 15:30] = True
    return mask


def npy_base64(array: npt.NDArray[Any]) -> str:
    """Return an array as a client sends it."""
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def test_an_embedding_in_json_is_what_was_computed(stack: Stack) -> None:
    """`embeddings` holds the features, 1x256x64x64, to the bit."""
    answer = stack.http.post(EMBED, json={"image": as_image(picture())})
    embeddings = np.array(answer.json()["embeddings"], np.float32)
    np.testing.assert_array_equal(embeddings, features_of(answer.headers["x-image-digest"]).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_embedding_in_binary_is_a_npy_file(stack: Stack, dtype: str) -> None:
    """Format `binary` is the raw .npy file, 1x256x64x64, in float32 or at half the size."""
    body = {"image": as_image(picture()), "format": "binary", "dtype": dtype}
    answer = stack.http.post(EMBED, json=body)
    assert answer.headers["content-type"] == "application/octet-stream"
    features = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert features.dtype == dtype
    np.testing.assert_array_equal(features, features_of(answer.headers["x-image-digest"]))


def test_a_stored_embedding_downloads_as_a_npy_file(stack: Stack) -> None:
    """GET with `.npy` gives float32 unless float16 is asked for."""
    stack.http.post(EMBED, json={"image": as_image(picture()), "image_id": "a", "format": "none"})
    plain = stack.http.get("/sam/embeddings/a.npy")
    half = stack.http.get("/sam/embeddings/a.npy?dtype=float16")
    assert np.load(io.BytesIO(plain.content)).dtype == np.float32
    np.testing.assert_array_equal(np.load(io.BytesIO(plain.content)), np.load(io.BytesIO(half.content)))


def test_masks_in_binary_are_a_npz_file(stack: Stack) -> None:
    """Format `binary`: `masks` bool CxHxW and `low_res_masks` float32 Cx256x256, scores and prompts besides."""
    body = {**BODY, "prompts": [POINT], "multimask_output": True, "format": "binary"}
    answer = stack.http.post(SEGMENT, json=body)
    assert answer.headers["content-type"] == "application/octet-stream"
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
        assert (arrays["masks"].dtype, arrays["masks"].shape) == (np.bool_, (6, 48, 64))
        assert (arrays["low_res_masks"].dtype, arrays["low_res_masks"].shape) == (np.float32, (6, 256, 256))
        np.testing.assert_array_equal(arrays["masks"][0] > 0, expected_mask())
        np.testing.assert_array_equal(arrays["low_res_masks"][:1], low_res_logits(expected_mask()))
        np.testing.assert_array_equal(arrays["scores"], np.array([0.5, 0.875, 0.75] * 2, np.float32))
        np.testing.assert_array_equal(arrays["prompt_indices"], [0, 0, 0, 1, 1, 1])


def test_low_res_masks_of_a_binary_answer_refine(stack: Stack) -> None:
    """The logits of one answer, sent back as .npy in base64, reach the decoder unchanged."""
    first = stack.http.post(SEGMENT, json={**BODY, "format": "binary"})
    with np.load(io.BytesIO(first.content)) as arrays:
        logits = arrays["low_res_masks"]
    body = {**BODY, "mask_input": npy_base64(logits), "mask_input_format": "binary", "has_mask_input": True}
    assert stack.http.post(SEGMENT, json=body).status_code == 200
    np.testing.assert_array_equal(from_tensor(stack.decoder.calls[-1].prompts[0].mask_input), logits)


@pytest.mark.parametrize("shape", [(256, 256), (1, 256, 256), (1, 1, 256, 256)])
def test_mask_inputs_of_every_shape_are_the_same(stack: Stack, shape: tuple[int, ...]) -> None:
    """(256, 256), (1, 256, 256) and (1, 1, 256, 256) reach the decoder as 1x256x256, float32."""
    logits = np.random.default_rng(0).normal(size=(1, 256, 256)).astype(np.float32)
    body = {**BODY, "mask_input": npy_base64(logits.reshape(shape)), "mask_input_format": "binary"}
    assert stack.http.post(SEGMENT, json=body).status_code == 200
    np.testing.assert_array_equal(from_tensor(stack.decoder.calls[-1].prompts[0].mask_input), logits)


def test_a_polygon_as_mask_input_is_filled_with_ones(stack: Stack) -> None:
    """`mask_input` in JSON is rasterised to 0 and 1 in the 256x256 frame."""
    body = {**BODY, "mask_input": [[[10, 20], [14, 20], [14, 23], [10, 23]]], "mask_input_format": "json"}
    assert stack.http.post(SEGMENT, json=body).status_code == 200
    sent = from_tensor(stack.decoder.calls[-1].prompts[0].mask_input)
    expected = np.zeros((1, 256, 256), np.float32)
    expected[0, 20:23, 10:14] = 1
    np.testing.assert_array_equal(sent, expected)


def test_each_prompt_refines_its_own_mask(stack: Stack) -> None:
    """Masks inside of `prompts` belong to their prompt."""
    first, second = (np.full((256, 256), value, np.float32) for value in (1, 2))
    prompts = [{**POINT, "mask_input": npy_base64(mask)} for mask in (first, second)]
    assert stack.http.post(SEGMENT, json={"image": as_image(picture()), "prompts": prompts}).status_code == 200
    sent = [from_tensor(prompt.mask_input) for prompt in stack.decoder.calls[-1].prompts]
    np.testing.assert_array_equal(sent, [first[None], second[None]])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("batch_axis", [True, False])
def test_embeddings_of_the_callers_own_are_decoded(stack: Stack, dtype: type, batch_axis: bool) -> None:
    """An embedding in base64, 3-D or 4-D, float32 or float16, reaches the decoder inline and unchanged."""
    features: npt.NDArray[Any] = features_of("0" * 64).astype(dtype)
    sent = features if batch_axis else features[0]
    body = {"embeddings": npy_base64(sent), "embeddings_format": "binary", "orig_im_size": [48, 64], **POINT}
    answer = stack.http.post(SEGMENT, json=body)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-cache"], answer.json()["original_size"]) == ("bypass", [48, 64])
    received = from_tensor(stack.decoder.calls[-1].embedding.features)
    assert received.dtype == dtype
    np.testing.assert_array_equal(received, features)


def test_embeddings_of_a_json_answer_are_decoded(stack: Stack) -> None:
    """The nested lists that embed_image answers with can be sent to segment_image."""
    embedded = stack.http.post(EMBED, json={"image": as_image(picture())}).json()
    body = {"embeddings": embedded["embeddings"], "orig_im_size": embedded["original_size"], **POINT}
    assert stack.http.post(SEGMENT, json=body).json()["masks"]
    received = from_tensor(stack.decoder.calls[-1].embedding.features)
    np.testing.assert_array_equal(received, np.array(embedded["embeddings"], np.float32))


def test_embeddings_that_are_not_finite_are_refused(stack: Stack) -> None:
    """NaN in an embedding is EMBEDDING_INVALID, before any service is asked."""
    features = features_of("0" * 64)
    features[0, 0, 0, 0] = np.nan
    body = {"embeddings": npy_base64(features), "orig_im_size": [48, 64], **POINT}
    answer = stack.http.post(SEGMENT, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "EMBEDDING_INVALID")
    assert not stack.decoder.calls


# pycocotools 2.0.11 has an array class of its own that does not know numpy 2's keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_rle_is_read_by_pycocotools(stack: Stack) -> None:
    """Format `rle` decodes to the mask with COCO's own tools."""
    (rle,) = stack.http.post(SEGMENT, json={**BODY, "format": "rle"}).json()["masks"]
    np.testing.assert_array_equal(coco.decode(rle) == 1, expected_mask())


def test_png_is_a_picture_of_one_bit_a_pixel(stack: Stack) -> None:
    """Format `png` is base64 of a PNG file of the picture's size."""
    (text,) = stack.http.post(SEGMENT, json={**BODY, "format": "png"}).json()["masks"]
    data = base64.b64decode(text)
    # The header's ninth and tenth byte are the bit depth and the kind of colour: 1, grey.
    assert tuple(data[24:26]) == (1, 0)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(np.asarray(pixels) > 0, expected_mask())


def test_polygons_have_all_parts_and_their_holes(stack: Stack) -> None:
    """Format `polygons`: a mask is a list of parts, a part its outline and then its holes."""
    stack.decoder.masks = [ring_with_island()]
    (parts,) = stack.http.post(SEGMENT, json={**BODY, "format": "polygons"}).json()["masks"]
    assert sorted(len(rings) for rings in parts) == [1, 2]
    drawn = np.zeros((48, 64), np.uint8)
    # Vertices lie on the corners of pixels; one less makes the last pixel inside the last one drawn.
    for rings in sorted(parts, key=len, reverse=True):
        for index, ring in enumerate(rings):
            (left, top), (right, bottom) = np.min(ring, axis=0), np.max(ring, axis=0)
            drawn[int(top) : int(bottom), int(left) : int(right)] = index == 0
    np.testing.assert_array_equal(drawn == 1, stack.decoder.masks[0])


def test_geojson_is_a_feature_collection(stack: Stack) -> None:
    """Format `geojson`: one MultiPolygon a mask, its rings closed, with score and prompt."""
    stack.decoder.masks = [ring_with_island()]
    answer = stack.http.post(SEGMENT, json={**BODY, "prompts": [POINT], "format": "geojson"})
    assert answer.headers["content-type"] == "application/geo+json"
    collection = answer.json()
    assert collection["type"] == "FeatureCollection"
    assert [feature["properties"] for feature in collection["features"]] == [
        {"score": 0.5, "prompt_index": 0},
        {"score": 0.5, "prompt_index": 1},
    ]
    for feature in collection["features"]:
        assert feature["geometry"]["type"] == "MultiPolygon"
        for rings in feature["geometry"]["coordinates"]:
            assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in rings)


def test_an_empty_mask_is_valid_in_every_format(stack: Stack) -> None:
    """A mask without a pixel is an empty polygon, no parts, an empty MultiPolygon, and all background."""
    stack.decoder.masks = [np.zeros((48, 64), np.bool_)]
    answers = {
        name: stack.http.post(SEGMENT, json={**BODY, "format": name}) for name in ("json", "polygons", "geojson")
    }
    assert answers["json"].json()["masks"] == [[]]
    assert answers["polygons"].json()["masks"] == [[]]
    assert answers["geojson"].json()["features"][0]["geometry"]["coordinates"] == []
    with np.load(io.BytesIO(stack.http.post(SEGMENT, json={**BODY, "format": "binary"}).content)) as arrays:
        assert not arrays["masks"].any()


def test_polygons_are_floats_and_scores_short(stack: Stack) -> None:
    """Coordinates are written as floats with whole values, scores with the digits of a float32."""
    text = stack.http.post(SEGMENT, json=BODY).text
    assert "[16.0,6.0]" in text
    assert '"scores":[0.5]' in text
    assert json.loads(text)["masks"][0][0] == [16.0, 6.0]


def test_sam2_binary_is_the_best_mask_of_each_prompt(stack: Stack) -> None:
    """The SAM 2 shape in binary holds one mask a prompt, the one with the best score of three."""
    point = {"points": [{"x": 20, "y": 10, "positive": True}]}
    body = {"image": as_image(picture()), "prompts": {"prompts": [point, point]}, "format": "binary"}
    answer = stack.http.post("/sam2/segment_image", json=body)
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert arrays["masks"].shape == (2, 48, 64)
        np.testing.assert_array_equal(arrays["scores"], np.array([0.875, 0.875], np.float32))
