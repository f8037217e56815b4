"""Segmenting everything: what may be asked for, how far it is, and what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, TypedDict, overload

import numpy as np
import numpy.typing as npt

from sam.errors import RequestInvalid
from sam.geometry import Size
from samovar.client import rle
from samovar.client.errors import AnswerUnreadable
from samovar.client.pictures import Picture
from samovar.client.results import Segmentation
from samovar.client.rle import Rle


class EverythingOptions(TypedDict, total=False):
    """The options of SAM's automatic mask generator, with its names; what is left out has its defaults.

    Attributes:
        points_per_side: the points along each side of the grid: 32, at most 64.
        point_grids: points of your own instead, N x 2 each, (x, y) as shares of width and height: for the picture, and
            for each layer of crops.
        pred_iou_thresh: masks with a predicted IoU of at most this are dropped: 0.88.
        stability_score_thresh: masks with a stability score below this are dropped: 0.95.
        stability_score_offset: how far the mask threshold is moved for that score: 1.0.
        box_nms_thresh: of two masks whose boxes have an IoU above this, the worse one is dropped: 0.7.
        crop_n_layers: 1 looks at four crops as well, 2 at sixteen more: 0. Each is embedded as a picture of its own.
        crop_nms_thresh: of two such masks of different crops, that of the larger one is dropped: 0.7.
        crop_overlap_ratio: by how much of the picture's shorter side crops overlap: 512 / 1500.
        crop_n_points_downscale_factor: by how much fewer points a side a layer has than the one before: 1.
        min_mask_region_area: holes of fewer pixels are filled, and islands of fewer removed: 0.
        mask_threshold: the logit above which a pixel belongs to a mask: 0.0.
    """

    points_per_side: int
    point_grids: Sequence[npt.ArrayLike]
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int
    mask_threshold: float


class Progress(NamedTuple):
    """How far the work is: the points that are done, all points, and the masks kept so far, duplicates included."""

    points_done: int
    points_total: int
    masks_found: int


OnProgress: TypeAlias = Callable[[Progress], None]
"""Is called again and again while a picture is segmented. It should be quick: the answer waits for it."""


def checked(options: EverythingOptions) -> dict[str, Any]:
    """Return the options that are given, grids as nested lists.

    Raises:
        TypeError: there is no option of that name.
        RequestInvalid: a grid is not N x 2 numbers.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    known = EverythingOptions.__annotations__
    if unknown := given.keys() - known.keys():
        raise TypeError(f"There is no option {min(unknown)!r}; there are {', '.join(known)}.")
    if "point_grids" in given:
        given["point_grids"] = [_grid(grid) for grid in given["point_grids"]]
    return given


def _grid(grid: npt.ArrayLike) -> list[list[float]]:
    try:
        points = np.asarray(grid, np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise RequestInvalid("Each of point_grids is N x 2, (x, y) from 0 to 1.", field="point_grids")
    return [[float(x), float(y)] for x, y in points]


@dataclass(frozen=True, eq=False)
class FoundMask:
    """A mask, with the fields of a record of SAM's automatic mask generator.

    Attributes:
        rle: its run lengths, as pycocotools reads them.
        area: how many pixels it has.
        bbox: its box: x, y, width, height. A mask of one pixel has a box of no extent.
        predicted_iou: the model's own estimate of its IoU with the true object.
        point_coords: [[x, y]], the point that found it.
        stability_score: the IoU of the masks at a higher and at a lower threshold.
        crop_box: the part of the picture that it was found in: x, y, width, height.
    """

    rle: Rle = field(repr=False)
    area: int
    bbox: list[float]
    predicted_iou: float
    point_coords: list[list[float]]
    stability_score: float
    crop_box: list[float]

    @cached_property
    def segmentation(self) -> npt.NDArray[np.bool_]:
        """bool, height x width of the picture."""
        height, width = self.rle["size"]
        return rle.decode(self.rle["counts"], Size(height, width))

    def record(self) -> dict[str, Any]:
        """Return the mask as the generator does in its mode `binary_mask`, for code that was written for that."""
        return {
            "segmentation": self.segmentation,
            "area": self.area,
            "bbox": self.bbox,
            "predicted_iou": self.predicted_iou,
            "point_coords": self.point_coords,
            "stability_score": self.stability_score,
            "crop_box": self.crop_box,
        }


class Everything(Sequence[FoundMask]):
    """All masks of a picture, the highest predicted IoU first.

    Attributes:
        picture: the picture they belong to; go on with this one.
        request_id: what the call is called in the server's logs.
    """

    def __init__(self, picture: Picture, masks: Sequence[FoundMask], *, request_id: str = "") -> None:
        """Hold masks of the picture."""
        self.picture = picture
        self.request_id = request_id
        self._masks = list(masks)

    def as_segmentation(self) -> Segmentation:
        """Return the masks as `segment` returns them, as if they were those of one prompt."""
        return Segmentation(
            self.picture,
            [mask.predicted_iou for mask in self],
            [0] * len(self),
            counts=[mask.rle["counts"] for mask in self],
            request_id=self.request_id,
        )

    def __len__(self) -> int:
        """The number of masks."""
        return len(self._masks)

    @overload
    def __getitem__(self, index: int) -> FoundMask: ...

    @overload
    def __getitem__(self, index: slice) -> list[FoundMask]: ...

    def __getitem__(self, index: int | slice) -> FoundMask | list[FoundMask]:
        """One of the masks, or some."""
        return self._masks[index]

    def __iter__(self) -> Iterator[FoundMask]:
        """Iterate over the masks."""
        return iter(self._masks)

    def __repr__(self) -> str:
        """Name what there is."""
        height, width = self.picture.size
        return f"Everything({len(self)} masks of {width} x {height} pixels)"


def found_mask_of(record: Mapping[str, Any]) -> FoundMask:
    """Read a mask from a record of the HTTP routes.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    pixels, stability = record["segmentation"], record["stability_score"]
    return FoundMask(
        Rle(size=list(pixels["size"]), counts=pixels["counts"]),
        int(record["area"]),
        list(record["bbox"]),
        float(record["predicted_iou"]),
        [list(point) for point in record["point_coords"]],
        float("nan") if stability is None else float(stability),
        list(record["crop_box"]),
    )


def telling(on_progress: OnProgress) -> Callable[[bytes], None]:
    """Return what takes the lines of a stream and tells of those that say how far the work is."""

    def tell(line: bytes) -> None:
        try:
            told = json.loads(line).get("progress")
            progress = told and Progress(told["points_done"], told["points_total"], told["masks_found"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AnswerUnreadable("The server sent a line that is no progress. Check the address.") from None
        if progress:
            on_progress(progress)

    return tell
