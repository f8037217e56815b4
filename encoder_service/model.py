"""The image encoder: resized pictures in, image embeddings out.

Its engines give the same result up to rounding: `plain` runs the network as upstream wrote it; where they know the
architecture, on a CPU `fast` computes the same by `encoder_service/fast_image_encoder.py` and `fused` by
`encoder_service/fused/`, and on a GPU `fused` does by `encoder_service/gpu/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from encoder_service.fast_image_encoder import is_supported
from encoder_service.gpu_engine import GpuChoice, choose_gpu_encoder
from encoder_service.precision import DTYPES, Engine, Precision, choose_autocast, choose_cpu_encoder
from sam.cpu import available_cores
from sam.geometry import EMBEDDING_SHAPE, INPUT_SIDE

Device = Literal["auto", "cpu", "cuda"]

# Mean and standard deviation of each channel, RGB, in units of 8-bit pixels.
# Source: `segment_anything/build_sam.py`, `pixel_mean` and `pixel_std`.
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)

CPU_BATCH_SIZES = (1,)
"""A CPU is as busy with one picture as with many, so a batch would only delay its first."""

GPU_BATCH_SIZES = (1, 2, 4, 8)
"""Eight pictures keep every GPU busy; few sizes keep the number of compiled shapes small."""


_GPU_IN_FLIGHT = 2
"""One that the GPU computes, and one that is sent to it meanwhile."""


class ImageEncoder:
    """SAM's image encoder on one device. One thread at a time may start a pass.

    Attributes:
        device: where it runs.
        engine: `fused`, `fast` or `plain`.
        dtype: the number format of its matrix products.
        batch_sizes: how many pictures it likes to get at a time.
        in_flight: how many passes it likes to have started and not finished.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        engine: Engine = "auto",
        threads: int = 0,
    ) -> None:
        """Put a network to work.

        Args:
            network: an image encoder as `encoder_service.variants.build_image_encoder` makes it, its weights loaded.
            device: `auto` takes a GPU if there is one.
            precision: `auto` is float16 on a GPU; on a CPU it is bfloat16 if the engine is not `plain`, there are units
                for it and the weights bear it, otherwise float32.
            engine: `plain` runs the network as it is. So does `fast` on a GPU, and so do both it and `auto` for the
                starter. `auto` takes the fastest that can run here.
            threads: how many compute on a CPU; 0: as many as there are cores.

        Raises:
            ValueError: the device is not there, or the engine cannot run there.
        """
        self.device = choose_device(device)
        self.batch_sizes: tuple[int, ...] = GPU_BATCH_SIZES if self.device.type == "cuda" else CPU_BATCH_SIZES
        self.in_flight = 1
        self._mean = torch.tensor(_PIXEL_MEAN, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(_PIXEL_STD, device=self.device).view(3, 1, 1)
        self._gpu: GpuChoice | None = None
        self._autocasts = True
        self.engine = "plain"
        self.dtype = _plain_dtype(precision, self.device)
        on_cpu, known = self.device.type == "cpu", is_supported(network)
        rearranged = known and (precision != "float16" if on_cpu else precision != "float32")
        if engine == "fused" and not rearranged:
            raise ValueError(
                "the fused engine is for vit_b, vit_l and vit_h; on a CPU not in float16, on a GPU not in float32"
            )
        if rearranged and not on_cpu and engine in ("auto", "fused"):
            exact = partial(self._exact, network)
            self._gpu = choose_gpu_encoder(network, engine, precision, self.device, self.batch_sizes, exact)
        if self._gpu is not None:
            self.engine, self.dtype, self.batch_sizes = "fused", self._gpu.dtype, self._gpu.passes.batch_sizes
            self.in_flight = _GPU_IN_FLIGHT
            return
        self._network = network.to(self.device).requires_grad_(False)
        if engine != "plain" and rearranged and on_cpu:
            chosen = choose_cpu_encoder(network, engine, precision, threads or available_cores())
            self._network, self.engine, self.dtype = chosen
            self._autocasts = False
        elif engine != "plain" and on_cpu and precision == "auto":
            self.dtype = choose_autocast(self._network)

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Embed resized pictures in one pass of the network.

        Args:
            images: pictures as `encoder_service.preprocessing.resize_longest_side` gives them:
                HxWx3 uint8, RGB, longest side 1024, sizes may differ.

        Returns:
            Image embeddings, Bx256x64x64 float32, in the order of the pictures.

        Raises:
            ValueError: a picture has another shape or dtype.
            FloatingPointError: an embedding is not finite; nothing of the batch can be trusted.
        """
        return self.start(images)()

    def start(self, images: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], npt.NDArray[np.float32]]:
        """Start a pass, and return what waits for its embeddings; any thread may do that, once.

        The fused engine on a GPU is at work from here on, and another pass may be started meanwhile. The others do
        everything when they are waited for.

        Args and errors are those of `embed`.
        """
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"an image must be HxWx3 uint8, not {image.shape} {image.dtype}")
            if max(image.shape) != INPUT_SIDE:
                raise ValueError(f"an image's longest side must be {INPUT_SIDE}: {image.shape}")
        if self._gpu is not None:
            return self._gpu.passes.start(images)
        return partial(self._computed, images)

    def _exact(self, network: nn.Module, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        network = network.to(self.device)
        with torch.inference_mode():
            embedding: npt.NDArray[np.float32] = network(self._input_frames([image])).cpu().numpy()
        return embedding

    def _computed(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        # Entered here and not at start-up, because it holds for the calling thread only.
        with torch.inference_mode(), self._autocast():
            embeddings = self._network(self._input_frames(images)).float().cpu().numpy()
        if not np.isfinite(embeddings).all():
            raise FloatingPointError("the image encoder gave numbers that are not finite")
        result: npt.NDArray[np.float32] = embeddings
        return result

    def warm_up(self) -> None:
        """Embed a blank picture in every batch size, so that no request pays for first-time set-up."""
        blank = np.zeros((INPUT_SIDE, INPUT_SIDE, 3), dtype=np.uint8)
        for size in self.batch_sizes:
            if self.embed([blank] * size).shape != (size, *EMBEDDING_SHAPE[1:]):
                raise ValueError("the image encoder's output has another shape than an embedding")

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32 or not self._autocasts:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _input_frames(self, images: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
        """Normalise pictures and pad them at the bottom and at the right: Bx3x1024x1024 float32.

        The padding is zero after normalising, so before it would be the mean colour, not black.
        Source: `segment_anything/modeling/sam.py`, `Sam.preprocess`.
        """
        frames = torch.zeros(len(images), 3, INPUT_SIDE, INPUT_SIDE, device=self.device)
        for frame, image in zip(frames, images, strict=True):
            pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)  # 3xHxW uint8
            part = frame[:, : pixels.shape[1], : pixels.shape[2]]
            part.copy_(pixels).sub_(self._mean).div_(self._std)
        return frames


def choose_device(device: Device) -> torch.device:
    """Return the device a setting means.

    Raises:
        ValueError: `cuda` was asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the device is set to cuda, but torch finds no GPU; set it to auto or cpu")
    return torch.device(device)


def _plain_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[precision]
