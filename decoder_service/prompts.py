"""Prompts: what a caller points at, checked once, and how it becomes the prompt encoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sam.errors import PromptInvalid
from sam.geometry import LOW_RES_SIDE, Size, points_to_input_frame

FOREGROUND, BACKGROUND, PADDING = 1, 0, -1
BOX_MIN_CORNER, BOX_MAX_CORNER = 2, 3
"""The two labels by which the official ONNX export marks the corners of a box among the points."""

MAX_MAGNITUDE = 1e6
"""The largest coordinate and logit let through: outside of every picture, still fit to square."""

Float32Array = npt.NDArray[np.float32]


class MaskChoice(Enum):
    """Which of the mask decoder's four masks answer a prompt."""

    BEST_OF_THREE = "best_of_three"
    """Of masks 1 to 3, the one with the highest IoU prediction: for an ambiguous prompt."""

    SINGLE = "single"
    """Mask 0, which SAM trained for prompts that leave no doubt."""

    THREE = "three"
    """Masks 1 to 3, in the order of the mask decoder."""


class PromptShape(NamedTuple):
    """What two prompts must share to be decoded in one batch.

    Prompts of different token counts are never padded to one length: a padding token takes part in
    the attention and would change the mask.
    """

    points: int
    has_box: bool
    has_mask_input: bool

    @property
    def tokens(self) -> int:
        """Its sparse tokens: without a box, SAM adds a padding point to the points."""
        padding = 1 if self.points and not self.has_box else 0
        return self.points + padding + 2 * self.has_box


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt: points, a box, a mask input, or any combination.

    Build it with `Prompt.build`, which checks it.

    Attributes:
        point_coords: float32 Nx2, (x, y) in pixels of the original picture; N may be 0.
        point_labels: int32 N, 1 foreground or 0 background.
        box: float32 4, XYXY in pixels of the original picture, or None.
        mask_input: float32 1x256x256 logits in the mask decoder's frame, or None.
        multimask_output: True three masks, False one, None to let the rule of `choice` decide.
    """

    point_coords: Float32Array
    point_labels: npt.NDArray[np.int32]
    box: Float32Array | None = None
    mask_input: Float32Array | None = None
    multimask_output: bool | None = None

    @classmethod
    def build(
        cls,
        *,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool | None = None,
    ) -> Prompt:
        """Check a prompt and bring it into its one form.

        Points labelled -1 are padding and are dropped. One point labelled 2 and one labelled 3 are
        the corners of a box.

        Args:
            point_coords: Nx2, (x, y) in pixels of the original picture.
            point_labels: N labels; left out, every point is foreground.
            box: XYXY in pixels of the original picture, `x_max > x_min` and `y_max > y_min`.
            mask_input: 256x256, 1x256x256 or 1x1x256x256 logits.
            multimask_output: see the attribute.

        Raises:
            PromptInvalid: a wrong shape, label or value, or nothing to segment.
        """
        coords, labels = _checked_points(point_coords, point_labels)
        coords, labels, corners = _split_box_corners(coords, labels)
        if corners is not None and box is not None:
            message = "a box and points labelled 2 and 3 say the same thing twice; send one"
            raise PromptInvalid(message, field="box")
        checked_box = _checked_box(corners if box is None else box)
        checked_mask = _checked_mask_input(mask_input)
        if not len(coords) and checked_box is None and checked_mask is None:
            message = "the prompt is empty: give point_coords, a box or a mask_input"
            raise PromptInvalid(message, field="point_coords")
        return cls(coords, labels, checked_box, checked_mask, multimask_output)

    @property
    def shape(self) -> PromptShape:
        """What this prompt must share with another one to be decoded with it."""
        has_mask_input = self.mask_input is not None
        return PromptShape(len(self.point_coords), self.box is not None, has_mask_input)

    @property
    def choice(self) -> MaskChoice:
        """Which masks answer this prompt.

        Unset, a prompt of at most one point is ambiguous and gets the best of three masks; two
        points, or a box, which counts as its two corners, are not and get mask 0. This is the rule
        of the official ONNX export.
        """
        if self.multimask_output is not None:
            return MaskChoice.THREE if self.multimask_output else MaskChoice.SINGLE
        ambiguous = len(self.point_coords) + (0 if self.box is None else 2) <= 1
        return MaskChoice.BEST_OF_THREE if ambiguous else MaskChoice.SINGLE


class PromptBatch(NamedTuple):
    """Prompts of one shape, in the input frame: what the prompt encoder takes.

    Attributes:
        point_coords: float32 BxNx2, (x, y) in pixels of the input frame, or None without points.
        point_labels: int32 BxN, 1 foreground or 0 background, or None without points.
        boxes: float32 Bx4, XYXY in pixels of the input frame, or None without boxes.
        mask_inputs: float32 Bx1x256x256 logits, or None without mask inputs.
    """

    point_coords: Float32Array | None
    point_labels: npt.NDArray[np.int32] | None
    boxes: Float32Array | None
    mask_inputs: Float32Array | None


def batch_prompts(prompts: Sequence[Prompt], original_size: Size) -> PromptBatch:
    """Put prompts of one and the same shape together and scale them to the input frame.

    Args:
        prompts: at least one; `Prompt.shape` is the same for all.
        original_size: the size of the picture, in pixels.
    """
    coords = np.stack([prompt.point_coords for prompt in prompts])
    labels = np.stack([prompt.point_labels for prompt in prompts])
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    masks = [prompt.mask_input for prompt in prompts if prompt.mask_input is not None]
    return PromptBatch(
        point_coords=_in_input_frame(coords, original_size) if coords.size else None,
        point_labels=labels if coords.size else None,
        boxes=(_in_input_frame(np.stack(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4) if boxes else None),
        mask_inputs=np.stack(masks) if masks else None,
    )


def _in_input_frame(points: Float32Array, original_size: Size) -> Float32Array:
    return points_to_input_frame(points, original_size).astype(np.float32)


def _as_float32(values: npt.ArrayLike, field: str) -> Float32Array:
    """Return `values` as float32, all of them finite and within `MAX_MAGNITUDE`."""
    try:
        array = np.asarray(values)
        if array.dtype != np.float32:
            array = array.astype(np.float64)  # wide enough to see 1e300 before it becomes infinite
    except (TypeError, ValueError):
        raise PromptInvalid(f"{field} must be a regular array of numbers", field=field) from None
    # Written so that NaN fails as well.
    if array.size and not np.abs(array).max() <= MAX_MAGNITUDE:
        message = f"{field} holds values that are not finite or beyond {MAX_MAGNITUDE:g}"
        raise PromptInvalid(message, field=field)
    return array.astype(np.float32, copy=False)


def _checked_points(
    point_coords: npt.ArrayLike | None, point_labels: npt.ArrayLike | None
) -> tuple[Float32Array, npt.NDArray[np.int32]]:
    """Return the points without their padding, and as many labels."""
    coords = _as_float32([] if point_coords is None else point_coords, "point_coords")
    if not coords.size:
        coords = coords.reshape(0, 2)
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise PromptInvalid(f"point_coords must be Nx2, not {_shape_text(coords)}", field="point_coords")
    if point_labels is None:
        return coords, np.full(len(coords), FOREGROUND, np.int32)

    labels = _as_float32(point_labels, "point_labels")
    if labels.shape != (len(coords),):
        message = f"there are {len(coords)} points and {labels.size} labels; each point needs one"
        raise PromptInvalid(message, field="point_labels")
    # Those known are all whole numbers from the padding's to the box's; numpy.isin takes ten times as long.
    if not ((labels >= PADDING) & (labels <= BOX_MAX_CORNER) & (labels == np.rint(labels))).all():
        raise PromptInvalid("point_labels are 1 (foreground) and 0 (background)", field="point_labels")
    kept = labels != PADDING
    return coords[kept], labels[kept].astype(np.int32)


def _split_box_corners(
    coords: Float32Array, labels: npt.NDArray[np.int32]
) -> tuple[Float32Array, npt.NDArray[np.int32], Float32Array | None]:
    """Take the points labelled 2 and 3 out of the points and return them as a box."""
    corner = labels >= BOX_MIN_CORNER
    if not corner.any():
        return coords, labels, None
    if sorted(labels[corner]) != [BOX_MIN_CORNER, BOX_MAX_CORNER]:
        message = "a box among the points is one labelled 2 (its minimum) and one 3 (its maximum)"
        raise PromptInvalid(message, field="point_labels")
    box = np.concatenate([coords[labels == BOX_MIN_CORNER][0], coords[labels == BOX_MAX_CORNER][0]])
    return coords[~corner], labels[~corner], box


def _checked_box(box: npt.ArrayLike | None) -> Float32Array | None:
    if box is None:
        return None
    checked = _as_float32(box, "box")
    if checked.shape != (4,):
        message = f"a box is x_min, y_min, x_max, y_max, not {_shape_text(checked)}"
        raise PromptInvalid(message, field="box")
    if checked[2] <= checked[0] or checked[3] <= checked[1]:
        raise PromptInvalid("a box needs x_max > x_min and y_max > y_min", field="box")
    return checked


def _checked_mask_input(mask_input: npt.ArrayLike | None) -> Float32Array | None:
    if mask_input is None:
        return None
    checked = _as_float32(mask_input, "mask_input")
    frame = (LOW_RES_SIDE, LOW_RES_SIDE)
    if checked.shape not in (frame, (1, *frame), (1, 1, *frame)):
        message = f"mask_input must be 1x256x256, not {_shape_text(checked)}"
        raise PromptInvalid(message, field="mask_input")
    return checked.reshape(1, *frame)


def _shape_text(array: npt.NDArray[np.float32]) -> str:
    return "x".join(map(str, array.shape)) or "a single number"
