"""The fields of the services' errors, renamed to those of the body that the caller sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.schemas import ImageBody, SegmentImageBody
from sam.errors import SamovarError

_OF_PROMPT = re.compile(r"prompts\[(\d{1,6})\](?:\.(\w+))?")

_NAMES = {
    "points": "point_coords",
    "use_remembered_mask": "has_mask_input",
    "model": "sam_version_id",
    "image.image_id": "image_id",
    "embedding": "embeddings",
    "embedding.features": "embeddings",
    "embedding.original_size": "orig_im_size",
    "embedding.image_id": "image_id",
}


@contextmanager
def fields_of(body: ImageBody) -> Iterator[None]:
    """Rename the field that an error names, so that the caller finds it in the body."""
    try:
        yield
    except SamovarError as error:
        if error.field:
            error.field = body_field(error.field, body)
        raise


def body_field(field: str, body: ImageBody) -> str:
    """Return the name, in a body, of a field of the request that was made from it.

    There the body's own prompt comes first, then its boxes, then its prompts.
    """
    match = _OF_PROMPT.match(field)
    if match is None or not isinstance(body, SegmentImageBody):
        return _NAMES.get(field, field)
    index, part = int(match[1]), _NAMES.get(match[2] or "", match[2] or "")
    if not body.is_empty:
        if index == 0:
            return part or "point_coords"
        index -= 1
    boxes = len(body.boxes or ())
    if index < boxes:
        return f"boxes[{index}]"
    return f"prompts[{index - boxes}].{part}".rstrip(".")
