"""What is downloaded is what was found, as other programs read it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.demo.demo_page import SEGMENT, DemoPage

Ring = list[list[float]]


@pytest.fixture
def labelled(demo: DemoPage, square: Path) -> DemoPage:
    """Two objects, one of them of several parts with holes."""
    demo.choose(square)
    demo.click(700, 300).wait("ready")
    demo.press("n")
    demo.drag(100, 900, 400, 1000).wait("ready")
    for number, label in enumerate(["samovar", "cup"], 1):
        field = demo.page.get_by_label(f"Label of object {number}")
        field.fill(label)
        field.press("Enter")
    return demo


def test_coco(labelled: DemoPage, tmp_path: Path) -> None:
    """The JSON is a data set that pycocotools loads: labels, sizes, areas and boxes agree with the masks."""
    file = labelled.download("coco", tmp_path)
    assert file.name == "square-coco.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["samovar", "cup"]
    assert coco.loadImgs(1)[0] == {"id": 1, "file_name": "square.png", "width": 1024, "height": 1024}
    entries = coco.loadAnns(coco.getAnnIds())
    assert [entry["category_id"] for entry in entries] == [1, 2]
    for entry in entries:
        mask = coco.annToMask(entry)
        assert mask.shape == (1024, 1024)
        assert entry["area"] == mask.sum() > 0
        assert entry["bbox"] == coco_mask.toBbox(entry["segmentation"]).tolist()
        assert entry["score"] == pytest.approx(0.9)


@pytest.mark.acceptance
def test_png(labelled: DemoPage, tmp_path: Path) -> None:
    """The PNG has the picture's size and at each pixel the number of its object, the later one where they overlap."""
    masks = labelled.masks(tmp_path)
    file = labelled.download("png", tmp_path)
    with Image.open(file) as picture:
        assert (file.name, picture.mode, picture.size) == ("square-labels.png", "P", (1024, 1024))
        picture.load()
        numbers = np.asarray(picture)
        assert len(set(picture.getpalette()[3:6])) > 1  # type: ignore[index]
    expected = np.zeros((1024, 1024), np.uint8)
    for number, mask in enumerate(masks, 1):
        expected[mask] = number
    assert np.array_equal(numbers, expected)
    assert set(np.unique(numbers)) == {0, 1, 2}


@pytest.mark.acceptance
def test_geojson(labelled: DemoPage, tmp_path: Path) -> None:
    """Every ring is closed and none touches itself, outlines and holes run opposite ways, and the areas are exact."""
    file = labelled.download("geojson", tmp_path)
    collection = json.loads(file.read_text())
    assert [feature["properties"]["label"] for feature in collection["features"]] == ["samovar", "cup"]
    holes = 0
    for feature, mask in zip(collection["features"], labelled.masks(tmp_path), strict=True):
        polygons = feature["geometry"]["coordinates"]
        for polygon in polygons:
            for number, ring in enumerate(polygon):
                assert ring[0] == ring[-1]
                assert len({tuple(position) for position in ring}) == len(ring) - 1
                assert (area_of(ring) > 0) == (number == 0)
                holes += number > 0
        assert sum(area_of(ring) for polygon in polygons for ring in polygon) == mask.sum()
    assert holes > 0


@pytest.mark.acceptance
def test_geojson_is_the_servers(labelled: DemoPage, tmp_path: Path) -> None:
    """The page traces the same polygons as the server does for its own format `geojson`."""
    collection = json.loads(labelled.download("geojson", tmp_path).read_text())
    for feature, body in zip(collection["features"], labelled.bodies(SEGMENT), strict=True):
        answer = httpx2.post(labelled.url + SEGMENT, json=body | {"format": "geojson"}, timeout=30).json()
        ours, theirs = (shapes_of(each["geometry"]["coordinates"]) for each in (feature, answer["features"][0]))
        assert ours == theirs


def area_of(ring: Ring) -> float:
    """Return the shoelace area of a closed ring: positive if it runs clockwise as seen with y pointing down."""
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def shapes_of(polygons: list[list[Ring]]) -> Any:
    """Return polygons such that where a ring begins, and in which order they come, makes no difference."""

    def shape_of(ring: Ring) -> tuple[tuple[float, ...], ...]:
        corners = [tuple(position) for position in ring[:-1]]
        first = corners.index(min(corners))
        return tuple(corners[first:] + corners[:first])

    return sorted((shape_of(polygon[0]), sorted(map(shape_of, polygon[1:]))) for polygon in polygons)
