"""The examples of /docs: each works when it is sent as it stands, in this order, without a network or a file."""

from __future__ import annotations

from typing import Any

# A PNG of 64x48 pixels: an orange disc of radius 14 around (32, 24) on green.
DISC_PNG_BASE64 = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwAQMAAACbhe5cAAAABlBMVEXwoCgoWjz8MWaQAAAAb0lEQVR42rXQsRGCABSD4Y8nBSUjOIqbwSiO4iiM"
    "QEmBxAL1jo5CU73LXf53SRO7yj+OEZJMlySF+/PtMCRFeFBsTBQrM8XCcgTOrKe/T2wUV+p0qqc9Oh0dRUv/Qe3MhtteZ5Tk21SSDEmaX8/7AlS8"
    "MZaohdp8AAAAAElFTkSuQmCC"
)

IMAGE_ID = "orange disc"

_IMAGE = {"type": "base64", "value": DISC_PNG_BASE64}
_POINT = {"point_coords": [[32, 24]], "point_labels": [1]}


def _example(summary: str, value: dict[str, Any]) -> Any:
    return {"summary": summary, "value": value}


EMBED_IMAGE = {
    "first": _example(
        "Embed a picture and keep it under a name, to be segmented next",
        {"image": _IMAGE, "image_id": IMAGE_ID, "format": "none"},
    ),
    "embedding": _example(
        "The same, with the embedding in the answer: 11 MB, better fetched with curl than here",
        {"image": _IMAGE, "image_id": IMAGE_ID},
    ),
    "url": _example(
        "A picture on the web (the server must be able to reach it)",
        {"image": {"type": "url", "value": "https://i.imgur.com/Q6lDy8B.jpg"}, "image_id": "example_image_id"},
    ),
}

SEGMENT_IMAGE = {
    "point": _example("One point on the picture that embed_image was given", {"image_id": IMAGE_ID, **_POINT}),
    "picture": _example("Picture and point at once", {"image": _IMAGE, **_POINT}),
    "points": _example(
        "On the object and off it; all three candidate masks",
        {
            "image_id": IMAGE_ID,
            "point_coords": [[32, 24], [4, 4]],
            "point_labels": [1, 0],
            "multimask_output": True,
        },
    ),
    "box": _example("A box, the mask as COCO RLE", {"image_id": IMAGE_ID, "box": [16, 8, 48, 40], "format": "rle"}),
    "prompts": _example(
        "Several prompts in one call",
        {"image_id": IMAGE_ID, "prompts": [_POINT, {"box": [16, 8, 48, 40]}], "format": "geojson"},
    ),
    "refine": _example(
        "Refine the last mask of this picture", {"image_id": IMAGE_ID, **_POINT, "has_mask_input": True}
    ),
}

SAM2_EMBED_IMAGE = {"first": _example("Embed a picture", {"image": _IMAGE, "image_id": IMAGE_ID})}

SAM2_SEGMENT_IMAGE = {
    "first": _example(
        "A point and a box, each its own prompt; x and y of a box are its centre",
        {
            "image": _IMAGE,
            "prompts": {
                "prompts": [
                    {"points": [{"x": 32, "y": 24, "positive": True}]},
                    {"box": {"x": 32, "y": 24, "width": 32, "height": 32}},
                ]
            },
        },
    )
}

SEGMENT_EVERYTHING = {
    "picture": _example("All masks of a picture, from a coarse grid", {"image": _IMAGE, "points_per_side": 8}),
    "stream": _example(
        "The picture that embed_image was given, with lines that tell how far it is",
        {"image_id": IMAGE_ID, "points_per_side": 8, "stream": True},
    ),
}
