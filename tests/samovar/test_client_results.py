"""Results in the hands of the tools that people use them with."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco

from sam.geometry import Size
from samovar.client import Picture, Segmentation, Source
from samovar.client.rle import encode

MASKS = np.zeros((3, 40, 60), np.bool_)
MASKS[0, 5:15, 10:30] = True
MASKS[1, 0:40, 0:60] = True


@pytest.fixture(params=["counts", "masks"])
def result(request: pytest.FixtureRequest) -> Segmentation:
    """A result that came as run lengths, or as an array; its last mask is empty."""
    picture = Picture("p", "d", Size(40, 60), "vit_b", True, Source(content=b"x"))
    if request.param == "masks":
        return Segmentation(picture, [0.5, 0.75, 0.25], [0, 0, 1], masks=MASKS)
    return Segmentation(picture, [0.5, 0.75, 0.25], [0, 0, 1], counts=[encode(mask) for mask in MASKS])


def test_masks(result: Segmentation) -> None:
    """Masks are boolean arrays of the picture's size, and their boxes end behind the last pixel."""
    np.testing.assert_array_equal(result.masks, MASKS)
    assert result.masks.dtype == np.bool_
    np.testing.assert_array_equal(result.best, MASKS[1])
    assert result.boxes.tolist() == [[10, 5, 30, 15], [0, 0, 60, 40], [0, 0, 0, 0]]
    assert len(result) == 3
    assert "3 masks of 60 x 40 pixels" in repr(result)


def test_pycocotools_takes_the_masks(result: Segmentation) -> None:
    """Run lengths are decoded, measured and compared by pycocotools as they are."""
    np.testing.assert_array_equal(coco.decode(result.rles).transpose(2, 0, 1) == 1, MASKS)
    assert coco.area(result.rles).tolist() == [200, 2400, 0]
    assert coco.iou(result.rles[:1], result.rles[1:2], [0]).tolist() == [[pytest.approx(200 / 2400)]]


def test_supervision_takes_the_masks(result: Segmentation) -> None:
    """`sv.Detections` is built from a result's parts, and annotators draw it."""
    # In a process of its own: the library warns of its own future, which the tests here treat as an error.
    program = """
import io, sys, numpy as np, supervision as sv
parts = io.BytesIO(sys.stdin.buffer.read())
masks, boxes, scores = (np.load(parts) for _ in range(3))
detections = sv.Detections(xyxy=boxes, mask=masks, confidence=scores, class_id=np.arange(len(masks)))
assert detections.area.tolist() == [200, 2400, 0], detections.area
assert len(detections[detections.confidence > 0.4]) == 2
drawn = sv.MaskAnnotator().annotate(np.zeros((40, 60, 3), np.uint8), detections)
assert drawn[10, 20].any()
"""
    parts = b"".join(_saved(array) for array in (result.masks, result.boxes, result.scores))
    done = subprocess.run([sys.executable, "-c", program], input=parts, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def _saved(array: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("module", ["samovar.client", "samovar.client.grpc"])
def test_the_client_needs_no_service(module: str) -> None:
    """The client runs where neither torch nor a service nor what they need is installed."""
    absent = "torch segment_anything gateway encoder_service decoder_service fastapi redis PIL cv2 pydantic pycocotools"
    if module == "samovar.client":
        absent += " grpc google"
    program = (
        f"import sys, {module}\n"
        f"found = {{name.split('.')[0] for name in sys.modules}} & set({absent.split()!r})\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
