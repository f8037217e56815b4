"""From the services' answers to the bytes of HTTP bodies. All of it runs in a thread."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from gateway.arrays import npy_header
from gateway.outlines import MAX_VERTICES, Part, Ring, external_polygons, full_mask, longest_polygon, parts_of
from gateway.segmentation import Outcome
from sam.errors import RequestTooLarge
from sam.geometry import EMBEDDING_SHAPE, INPUT_SIDE, LOW_RES_SIDE
from sam.tensors import from_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2

JSON = "application/json"
GEOJSON = "application/geo+json"
BINARY = "application/octet-stream"

# Masks are mostly runs of one value, which the fastest level finds as well; logits hardly shrink at any.
_ZIP_LEVEL = 1


def embedding_json(outcome: Outcome, *, features: bool, elapsed_s: float) -> bytes:
    """Render an embedding as JSON, its 1x256x64x64 numbers as nested lists, if asked for."""
    body: dict[str, Any] = {}
    if features:
        body["embeddings"] = _features(outcome.embedding, np.float32)
    body |= about(outcome)
    body["time"] = elapsed_s
    return _dumps(body)


def embedding_npy(embedding: embedding_pb2.ImageEmbedding, dtype: str) -> bytes:
    """Render an embedding as a `.npy` file, 1x256x64x64, float32 or float16."""
    features = _features(embedding, np.dtype(dtype).newbyteorder("<"))
    return npy_header(features.shape, features.dtype) + features.tobytes()


def stored_embedding_json(embedding: embedding_pb2.ImageEmbedding) -> bytes:
    """Render what is known about a stored embedding."""
    expires = embedding.expire_time.ToDatetime().isoformat() + "Z" if embedding.HasField("expire_time") else None
    size = embedding.input_size
    return _dumps(
        {
            **_identity(embedding),
            "input_size": [size.height, size.width],
            "model_fingerprint": embedding.model_fingerprint,
            "preprocessing_version": embedding.preprocessing_version,
            "expire_time": expires,
        }
    )


def segmentation(outcome: Outcome, format_name: str, elapsed_s: float, max_bytes: int) -> tuple[bytes, str]:
    """Render masks in one of the formats of `SegmentImageBody.format`; return the body and its media type.

    Raises:
        RequestTooLarge: format `binary` would unpack to more than `max_bytes`.
    """
    if format_name == "binary":
        return _npz(outcome, max_bytes), BINARY
    if format_name == "geojson":
        return _dumps({**_feature_collection(outcome), **about(outcome), "time": elapsed_s}), GEOJSON
    masks = _masks(outcome.results)
    body: dict[str, Any]
    if format_name == "polygons":
        body = {"masks": [[_rings(part) for part in parts] for parts in _parts_of_all(masks)]}
    else:
        body = {"masks": [_MASK_RENDERERS[format_name](mask) for mask in masks]}
    if format_name == "json":
        body["low_res_masks"] = [longest_polygon(mask.low_res_bitmap) for mask in masks]
    body |= {"scores": _scores(masks), "prompt_indices": _prompt_indices(outcome.results)}
    return _dumps({**body, **about(outcome), "time": elapsed_s}), JSON


def sam2_segmentation(outcome: Outcome, format_name: str, elapsed_s: float, max_bytes: int) -> tuple[bytes, str]:
    """Render the best mask of each prompt as the SAM 2 routes of the reference do; see `segmentation`."""
    outcome.results = [pb.PromptResult(masks=[_best(result.masks)]) for result in outcome.results]
    if format_name == "binary":
        return _npz(outcome, max_bytes), BINARY
    predictions = [
        {
            "masks": _rle(mask) if format_name == "rle" else external_polygons(mask.bitmap),
            "confidence": _score(mask),
            "format": "rle" if format_name == "rle" else "polygon",
        }
        for mask in _masks(outcome.results)
    ]
    return _dumps({"predictions": predictions, **about(outcome), "time": elapsed_s}), JSON


_ORIGINS = {
    embedding_pb2.CHECKPOINT_ORIGIN_PUBLISHED: ("published", None),
    embedding_pb2.CHECKPOINT_ORIGIN_CUSTOM: ("custom", None),
    embedding_pb2.CHECKPOINT_ORIGIN_STARTER: ("starter", "A small bundled model for trying the service out."),
    embedding_pb2.CHECKPOINT_ORIGIN_RANDOM: ("random", "Seeded random weights: the masks mean nothing."),
}


def models_json(model: embedding_pb2.Model) -> bytes:
    """Render the list of models served, in the reference's shape with what we know besides."""
    origin, warning = _ORIGINS.get(model.origin, ("unknown", None))
    entry = {
        "model_id": f"sam/{model.name}",
        "task_type": "unsupervised-segmentation",
        "batch_size": None,
        "input_height": INPUT_SIDE,
        "input_width": INPUT_SIDE,
        "fingerprint": model.fingerprint,
        "origin": origin,
        "warning": warning,
    }
    return _dumps({"models": [entry]})


def about(outcome: Outcome) -> dict[str, Any]:
    """Return what every JSON answer says about the picture."""
    return {
        **_identity(outcome.embedding),
        "cached": outcome.cached,
        "image_id_moved": outcome.image_id_moved,
    }


def _identity(embedding: embedding_pb2.ImageEmbedding) -> dict[str, Any]:
    size = embedding.original_size
    return {
        "image_id": embedding.image_id or embedding.image_digest or None,
        "image_digest": embedding.image_digest or None,
        "original_size": [size.height, size.width],
        "model": embedding.model,
    }


def _features(embedding: embedding_pb2.ImageEmbedding, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    features = from_tensor(embedding.features).reshape(EMBEDDING_SHAPE)
    return np.ascontiguousarray(features, dtype)


def _masks(results: Sequence[pb.PromptResult]) -> list[pb.Mask]:
    return [mask for result in results for mask in result.masks]


def _score(mask: pb.Mask) -> np.float32:
    """Return a score that JSON writes with the digits of a float32, not with those of the double it was widened to."""
    return np.float32(mask.iou_prediction)


def _scores(masks: Sequence[pb.Mask]) -> npt.NDArray[np.float32]:
    return np.array([mask.iou_prediction for mask in masks], np.float32)


def _prompt_indices(results: Sequence[pb.PromptResult]) -> list[int]:
    return [index for index, result in enumerate(results) for _ in result.masks]


def _best(masks: Sequence[pb.Mask]) -> pb.Mask:
    return max(masks, key=lambda mask: mask.iou_prediction)


def _polygon(mask: pb.Mask) -> Ring:
    return longest_polygon(mask.bitmap)


def _rle(mask: pb.Mask) -> dict[str, Any]:
    size = mask.rle.size
    return {"size": [size.height, size.width], "counts": mask.rle.counts.decode("ascii")}


def _png(mask: pb.Mask) -> str:
    return base64.b64encode(mask.png).decode("ascii")


_MASK_RENDERERS: dict[str, Callable[[pb.Mask], Any]] = {
    "json": _polygon,
    "rle": _rle,
    "png": _png,
}


def _feature_collection(outcome: Outcome) -> dict[str, Any]:
    """Return GeoJSON in pixels of the picture, y pointing down, one feature a mask."""
    masks = _masks(outcome.results)
    features = [
        {
            "type": "Feature",
            "properties": {"score": _score(mask), "prompt_index": index},
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[_closed(ring) for ring in _rings(part)] for part in parts],
            },
        }
        for mask, index, parts in zip(masks, _prompt_indices(outcome.results), _parts_of_all(masks), strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def _parts_of_all(masks: Sequence[pb.Mask]) -> list[list[Part]]:
    """Return the parts of every mask, their vertices bounded all together."""
    left = MAX_VERTICES
    found = []
    for mask in masks:
        parts = parts_of(mask.bitmap, left)
        left = max(0, left - sum(len(ring) for part in parts for ring in _rings(part)))
        found.append(parts)
    return found


def _rings(part: Part) -> list[Ring]:
    return [part.outline, *part.holes]


def _closed(ring: Ring) -> Ring:
    return np.concatenate([ring, ring[:1]])


def _npz(outcome: Outcome, max_bytes: int) -> bytes:
    """Return a compressed .npz file: `masks` bool CxHxW, `low_res_masks` float32 Cx256x256, and more."""
    masks = _masks(outcome.results)
    size = outcome.embedding.original_size
    shape = (len(masks), size.height, size.width)
    if shape[0] * shape[1] * shape[2] > max_bytes:
        raise RequestTooLarge(
            f"{len(masks)} masks of {size.width} x {size.height} pixels are too much for one answer in 'binary'. "
            "Send fewer prompts a request, or ask for 'rle' or 'png'."
        )
    low_res = np.zeros((len(masks), LOW_RES_SIDE, LOW_RES_SIDE), np.float32)
    for index, mask in enumerate(masks):
        low_res[index] = from_tensor(mask.low_res_logits).reshape(LOW_RES_SIDE, LOW_RES_SIDE)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_ZIP_LEVEL) as archive:
        with archive.open("masks.npy", "w", force_zip64=True) as member:
            # Mask by mask, so that no more than one is unpacked at a time.
            member.write(npy_header(shape, np.dtype(np.bool_)))
            for mask in masks:
                member.write(full_mask(mask.bitmap).tobytes())
        _add_array(archive, "low_res_masks", low_res)
        _add_array(archive, "scores", _scores(masks))
        _add_array(archive, "prompt_indices", np.array(_prompt_indices(outcome.results), np.int32))
    return file.getvalue()


def _add_array(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    archive.writestr(f"{name}.npy", npy_header(array.shape, array.dtype) + array.tobytes())


def _dumps(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
