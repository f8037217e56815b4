"""The mask predictor: prompts on one image embedding in, logits and IoU predictions out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import structlog
import torch

from decoder_service.engine import MaskDecoderEngine, PreparedEmbedding, Wanted
from decoder_service.fast_mask_decoder import FastMaskDecoder
from decoder_service.fused.library import SOURCES
from decoder_service.fused.mask_decoder import FusedMaskDecoder
from decoder_service.plain_mask_decoder import PlainMaskDecoder
from decoder_service.prompts import MaskChoice, Prompt, PromptShape, batch_prompts
from decoder_service.resizing import rows_read
from decoder_service.team import Team
from sam.compiled.library import Library, LibraryMissing
from sam.cpu import has_fast_bfloat16
from sam.geometry import EMBEDDING_SHAPE, Size

Engine = Literal["auto", "fused", "fast", "plain"]
Precision = Literal["auto", "float32", "bfloat16"]

log = structlog.get_logger("decoder_service")

_PROMPTS_PER_BATCH = 16
"""Prompts decoded together. Bounds memory (the plain engine holds some 40 MiB a prompt) and how long
a caller that has gone keeps a thread."""


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """The answer to one prompt.

    Attributes:
        low_res_logits: float32 Cx256x256, in the mask decoder's frame, padding included; C is 1 or 3.
        iou_predictions: float32 C, the model's own estimates, about 0 to 1, not clamped.
    """

    low_res_logits: npt.NDArray[np.float32]
    iou_predictions: npt.NDArray[np.float32]

    def only(self, above: float) -> MaskPrediction:
        """Return the masks whose IoU prediction is above a number; C may be 0 then."""
        # In float32, as torch compares: 0.88 and the float32 next to it are the same.
        chosen = self.iou_predictions > np.float32(above)
        return MaskPrediction(self.low_res_logits[chosen], self.iou_predictions[chosen])


class MaskPredictor:
    """SAM's prompt encoder and mask decoder behind one call. Threads may share it.

    Attributes:
        team: the threads that compute one call.
        engine: `fused`, `fast` or `plain`.
        precision: `float32` or `bfloat16`, of the image's side.
        library: the compiled code that scales and encodes masks, with the fused engine.

    Args:
        prompt_encoder: upstream's `PromptEncoder` with its weights; see `sam.modeling`.
        mask_decoder: upstream's `MaskDecoder` with its weights.
        engine: `fused` or `fast` for the rearranged arithmetic, compiled or in torch; `plain` for upstream's modules
            as they are. `auto` is fused where the precision is bfloat16 and the compiled code can run, and otherwise
            fast.
        precision: of the work on the image side. `auto` is bfloat16 where the CPU multiplies it in hardware, and
            otherwise float32. The fused engine is always bfloat16, and the plain one float32.
        team: the threads that compute one call. The plain engine leaves that to torch.

    Raises:
        ValueError: an unknown engine or precision, or one that cannot be had here.
    """

    def __init__(
        self,
        prompt_encoder: Any,
        mask_decoder: Any,
        *,
        engine: Engine = "auto",
        precision: Precision = "auto",
        team: Team | None = None,
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision is auto, float32 or bfloat16, not {precision}")
        prompt_encoder.eval().requires_grad_(False)
        mask_decoder.eval().requires_grad_(False)
        team = team or Team()
        narrow = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16())
        if engine == "plain":
            self._take(PlainMaskDecoder(prompt_encoder, mask_decoder), "plain", "float32", team)
            return
        if engine not in ("auto", "fused", "fast"):
            raise ValueError(f"engine is auto, fused, fast or plain, not {engine}")
        if engine != "fast" and narrow:
            try:
                library = SOURCES.load()
            except LibraryMissing as error:
                if engine == "fused":
                    raise ValueError(f"the fused engine cannot run: {error}") from None
                log.info("the fused engine cannot run, so the fast one does", cause=str(error))
            else:
                with torch.inference_mode():
                    fused = FusedMaskDecoder(prompt_encoder, mask_decoder, library, team)
                self._take(fused, "fused", "bfloat16", team, library)
                return
        elif engine == "fused":
            raise ValueError("the fused engine computes in bfloat16: set precision to bfloat16, or engine to fast")
        with torch.inference_mode():
            dtype = torch.bfloat16 if narrow else torch.float32
            fast = FastMaskDecoder(prompt_encoder, mask_decoder, dtype, team)
        self._take(fast, "fast", "bfloat16" if narrow else "float32", team)

    @classmethod
    def of_engine(cls, engine: MaskDecoderEngine, team: Team) -> MaskPredictor:
        """Return a predictor around an engine that is built already and computes in float32."""
        predictor = cls.__new__(cls)
        predictor._take(engine, type(engine).__name__, "float32", team)
        return predictor

    def _take(
        self, decoder: MaskDecoderEngine, engine: str, precision: str, team: Team, library: Library | None = None
    ) -> None:
        self._decoder = decoder
        self.engine = engine
        self.precision = precision
        self.team = team
        self.library = library

    def prepare(self, features: npt.NDArray[np.floating]) -> PreparedEmbedding:
        """Compute what all prompts on one image share; keep it to decode the image again.

        Args:
            features: an image embedding, float16 or float32 1x256x64x64.

        Raises:
            ValueError: another shape.
        """
        if features.shape != EMBEDDING_SHAPE:
            raise ValueError(f"an image embedding is 1x256x64x64, not {features.shape}")
        # A copy: the array may be a read-only view of a message or of the store's bytes. Widened by torch, numpy takes
        # ten times as long.
        with torch.inference_mode():
            return self._decoder.prepare(torch.from_numpy(features.copy()).float())

    def predict_masks(
        self, prepared: PreparedEmbedding, prompts: Sequence[Prompt], original_size: Size
    ) -> list[MaskPrediction]:
        """Predict the masks of every prompt on one image, in the order of the prompts.

        Args:
            prepared: what `prepare` of this predictor returned for the image.
            prompts: what to segment; each alone, whatever stands beside it.
            original_size: the size of the picture, in pixels.
        """
        found: dict[int, MaskPrediction] = {}
        for group in self.batches(prompts):
            members = [prompts[index] for index in group]
            predictions = self.predict_batch(prepared, members, original_size)
            found.update(zip(group, predictions, strict=True))
        return [found[index] for index in range(len(prompts))]

    @staticmethod
    def batches(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Yield the indices of prompts that can be decoded together, a bounded number at a time."""
        groups: dict[tuple[PromptShape, MaskChoice], list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault((prompt.shape, prompt.choice), []).append(index)
        for group in groups.values():
            for start in range(0, len(group), _PROMPTS_PER_BATCH):
                yield group[start : start + _PROMPTS_PER_BATCH]

    def predict_batch(
        self,
        prepared: PreparedEmbedding,
        prompts: Sequence[Prompt],
        original_size: Size,
        *,
        above: float | None = None,
        padding: bool = True,
    ) -> list[MaskPrediction]:
        """Predict the masks of prompts that share a shape and a choice; see `batches`.

        Args:
            prepared: what `prepare` of this predictor returned for the image.
            prompts: what to segment.
            original_size: the size of the picture, in pixels.
            above: if set, only masks with an IoU prediction above it are returned, which saves making the others.
            padding: whether logits below the picture matter, which none that is scaled to its size is made from.
        """
        batch = batch_prompts(prompts, original_size)
        with torch.inference_mode():
            wanted = Wanted(above) if padding else Wanted(above, rows_read(original_size))
            logits, ious = self._decoder.predict(prepared, batch, prompts[0].choice, wanted)
        found = [MaskPrediction(*each) for each in zip(logits.numpy(), ious.numpy(), strict=True)]
        return found if above is None else [prediction.only(above) for prediction in found]
