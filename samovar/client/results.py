"""What a segmentation returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from samovar.client import rle
from samovar.client.pictures import Picture
from samovar.client.rle import Rle

Masks = npt.NDArray[np.bool_]


class Segmentation:
    """The masks of one call, in the order of its prompts.

    Attributes:
        picture: the picture they belong to; go on with this one.
        scores: float32, one a mask: the model's own estimate of its intersection over union with the true object.
        prompt_indices: int, one a mask: the number of its prompt, from 0.
        logits: float32, masks x 256 x 256: the masks before scaling and thresholding, if they were asked for. One of
            them is the `mask_input` of a prompt that refines it.
        request_id: what the call is called in the server's logs.
        timings_ms: how long the stages took at the server, in milliseconds.
    """

    def __init__(
        self,
        picture: Picture,
        scores: npt.ArrayLike,
        prompt_indices: npt.ArrayLike,
        *,
        counts: Sequence[str] | None = None,
        masks: Masks | None = None,
        logits: npt.NDArray[np.float32] | None = None,
        request_id: str = "",
        timings_ms: Mapping[str, float] | None = None,
    ) -> None:
        """Hold masks of the picture's size, as compressed run lengths or as an array."""
        self.picture = picture
        self.scores = np.asarray(scores, np.float32)
        self.prompt_indices = np.asarray(prompt_indices, np.intp)
        self.logits = logits
        self.request_id = request_id
        self.timings_ms = dict(timings_ms or {})
        self._counts = counts
        self._masks = masks

    def __len__(self) -> int:
        """The number of masks."""
        return len(self.scores)

    def __repr__(self) -> str:
        """Name what there is."""
        height, width = self.picture.size
        return f"Segmentation({len(self)} masks of {width} x {height} pixels, scores {self.scores.round(3).tolist()})"

    @cached_property
    def masks(self) -> Masks:
        """bool, masks x height x width."""
        if self._masks is not None:
            return self._masks
        decoded = [rle.decode(counts, self.picture.size) for counts in self._counts or ()]
        return np.stack(decoded) if decoded else np.zeros((0, *self.picture.size), np.bool_)

    @cached_property
    def rles(self) -> list[Rle]:
        """The masks as pycocotools reads them."""
        counts = [rle.encode(mask) for mask in self.masks] if self._counts is None else self._counts
        return [Rle(size=list(self.picture.size), counts=text) for text in counts]

    @cached_property
    def boxes(self) -> npt.NDArray[np.float32]:
        """float32, masks x 4: (x_min, y_min, x_max, y_max) of the rectangle around each mask; zeros around none.

        The right and lower edges are those of the last pixel, so that x_max - x_min is the width.
        """
        return np.array([_box(mask) for mask in self.masks], np.float32).reshape(-1, 4)

    @property
    def best(self) -> Masks:
        """bool, height x width: the mask with the highest score."""
        return np.asarray(self.masks[int(self.scores.argmax())])


def _box(mask: Masks) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
