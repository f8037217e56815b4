"""What to segment, in the words of `SamPredictor.predict`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam.errors import PromptInvalid
from sam.geometry import LOW_RES_SIDE


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Any combination of points, a box and an earlier mask, but at least one of them.

    Attributes:
        point_coords: N x 2, (x, y) in pixels of the picture.
        point_labels: N, 1 on the object and 0 off it; left out: all on it.
        box: (x_min, y_min, x_max, y_max) in pixels of the picture.
        mask_input: the logits of an earlier result for the same picture, 256 x 256 or 1 x 256 x 256: see
            `Segmentation.logits`.
    """

    point_coords: npt.ArrayLike | None = None
    point_labels: npt.ArrayLike | None = None
    box: npt.ArrayLike | None = None
    mask_input: npt.NDArray[np.floating] | None = None

    def points(self) -> list[tuple[float, float, int]]:
        """Return the points as (x, y, label).

        Raises:
            PromptInvalid: the points are not N x 2 finite numbers, or the labels are not N times 1 or 0.
        """
        if self.point_coords is None:
            if self.point_labels is not None:
                raise PromptInvalid("There are point_labels without point_coords.", field="point_labels")
            return []
        coords = _numbers(self.point_coords, "point_coords")
        if coords.ndim != 2 or coords.shape[1] != 2:
            raise PromptInvalid(f"point_coords are N x 2, not {_by(coords.shape)}.", field="point_coords")
        given = np.ones(len(coords)) if self.point_labels is None else self.point_labels
        labels = _numbers(given, "point_labels")
        if labels.shape != (len(coords),) or not np.isin(labels, (0, 1)).all():
            raise PromptInvalid(
                f"There are {len(coords)} points: point_labels are as many numbers, 1 on the object and 0 off it.",
                field="point_labels",
            )
        return [(float(x), float(y), int(label)) for (x, y), label in zip(coords, labels, strict=True)]

    def corners(self) -> tuple[float, float, float, float] | None:
        """Return the box as four numbers.

        Raises:
            PromptInvalid: it is not four finite numbers.
        """
        if self.box is None:
            return None
        numbers = _numbers(self.box, "box")
        if numbers.shape != (4,):
            raise PromptInvalid("A box is four numbers: x_min, y_min, x_max, y_max.", field="box")
        x_min, y_min, x_max, y_max = map(float, numbers)
        return x_min, y_min, x_max, y_max

    def logits(self) -> npt.NDArray[np.float32] | None:
        """Return the mask input as float32, 1 x 256 x 256.

        Raises:
            PromptInvalid: it has another shape, or numbers that are not finite.
        """
        if self.mask_input is None:
            return None
        array = np.asarray(self.mask_input, np.float32)
        if array.size != LOW_RES_SIDE**2 or array.shape[-2:] != (LOW_RES_SIDE, LOW_RES_SIDE):
            raise PromptInvalid(f"A mask_input is 256 x 256 logits, not {_by(array.shape)}.", field="mask_input")
        if not np.isfinite(array).all():
            raise PromptInvalid("A mask_input holds logits that are not finite.", field="mask_input")
        return array.reshape(1, LOW_RES_SIDE, LOW_RES_SIDE)

    def to_json(self) -> dict[str, Any]:
        """Return the prompt as the HTTP routes take it."""
        out: dict[str, Any] = {}
        if points := self.points():
            out["point_coords"] = [[x, y] for x, y, _ in points]
            out["point_labels"] = [label for _, _, label in points]
        if (box := self.corners()) is not None:
            out["box"] = list(box)
        if (logits := self.logits()) is not None:
            file = io.BytesIO()
            np.save(file, logits, allow_pickle=False)
            out["mask_input"] = base64.b64encode(file.getvalue()).decode("ascii")
        return out


def all_prompts(own: Prompt, more: Sequence[Prompt] | None) -> list[Prompt]:
    """Return the prompts of a call: its own one, if there is one, then the others.

    Raises:
        PromptInvalid: there is none.
    """
    prompts = list(more or ())
    if any(part is not None for part in (own.point_coords, own.point_labels, own.box, own.mask_input)):
        prompts.insert(0, own)
    if not prompts:
        raise PromptInvalid("There is no prompt: give point_coords, a box, a mask_input or prompts.")
    return prompts


def _numbers(values: npt.ArrayLike, field: str) -> npt.NDArray[np.float64]:
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if not np.isfinite(numbers).all():
        raise PromptInvalid(f"{field} holds something that is no number.", field=field)
    return numbers


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
