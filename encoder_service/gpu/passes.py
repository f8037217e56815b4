"""Passes of the image encoder on a GPU, of which the next can be on its way while one is computed.

Pictures go to the device on one stream, are computed on a second, and come back on a third, so that the second has
nothing to wait for but work. What a pass brings along and what it takes away is its own; in between, passes share the
encoder's memory, since the second stream does them one after another. Whole batches of fixed sizes are replayed as CUDA
graphs, but for the first step and the last, which know where the pass has its pictures and where its embeddings go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

log = logging.getLogger("encoder_service.gpu")


class Encoder(Protocol):
    """What `GpuImageEncoder` offers."""

    device: torch.device

    def take(self, pixels: torch.Tensor, places: torch.Tensor) -> None:
        """Take pictures."""

    def transform(self, pictures: int) -> None:
        """Compute."""

    def give(self, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings, and how many of their numbers are not finite."""


class Pass:
    """A batch that was started. Calling it waits for the result; any thread may, once.

    Attributes:
        begun: when the device began with it, an event with time; None on a CPU.
        done: when the device had computed it.
    """

    def __init__(self, embeddings: torch.Tensor, flaws: torch.Tensor) -> None:
        self.begun: Any = None
        self.done: Any = None
        self.arrived: Any = None
        self._embeddings, self._flaws = embeddings, flaws

    def __call__(self) -> npt.NDArray[np.float32]:
        """Return the embeddings, Bx256x64x64.

        Raises:
            FloatingPointError: an embedding is not finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if self._flaws.numpy().any():
            raise FloatingPointError("the image encoder gave numbers that are not finite")
        result: npt.NDArray[np.float32] = self._embeddings.numpy()
        return result


class GpuPasses:
    """Starts passes. One thread at a time may."""

    def __init__(self, build: Callable[[int], Encoder], batch_sizes: Sequence[int]) -> None:
        """Build the encoder, and a graph for each batch size. Takes seconds.

        Args:
            build: builds it for batches of up to so many pictures.
            batch_sizes: the sizes to prepare; those that there is no memory for are left out.

        Raises:
            torch.OutOfMemoryError: there is no memory for the smallest.
        """
        sizes = sorted(batch_sizes)
        while (encoder := self._prepared(build, sizes)) is None:
            log.warning("no memory on the GPU for batches of %d pictures: they will be smaller", sizes.pop())
        self._encoder = encoder
        self.batch_sizes = tuple(sizes)
        """The sizes that were prepared, ascending."""

    def _prepared(self, build: Callable[[int], Encoder], sizes: list[int]) -> Encoder | None:
        """Return the encoder, or None if so large a one does not fit and a smaller one is worth a try."""
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        try:
            encoder = build(sizes[-1])
            if encoder.device.type == "cuda":
                # Weights are still on their way, on the stream of this thread; the others do not wait for it.
                torch.cuda.synchronize()
                self._sending, self._computing, self._fetching = (_stream() for _ in range(3))
                pool = torch.cuda.graph_pool_handle()
                for size in reversed(sizes):
                    self._graphs[size] = _captured(encoder, size, self._computing, pool)
        except torch.OutOfMemoryError:
            if len(sizes) == 1:
                raise
        else:
            return encoder
        self._graphs.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def start(self, images: Sequence[npt.NDArray[np.uint8]]) -> Pass:
        """Send a batch of pictures, HxWx3 uint8, to the device, and return while it is at work."""
        on_gpu = self._encoder.device.type == "cuda"
        pixels, places = staged(images, pinned=on_gpu)
        if not on_gpu:
            self._encoder.take(pixels, places)
            self._encoder.transform(len(images))
            return Pass(*self._encoder.give(len(images)))
        with torch.cuda.stream(self._sending):
            sent = [tensor.to(self._encoder.device, non_blocking=True) for tensor in (pixels, places)]
            there = self._sending.record_event()
        begun, done = _event(enable_timing=True), _event(enable_timing=True)
        with torch.cuda.stream(self._computing):
            self._computing.wait_event(there)
            begun.record()
            self._encoder.take(*sent)
            if graph := self._graphs.get(len(images)):
                graph.replay()
            else:
                self._encoder.transform(len(images))
            results = self._encoder.give(len(images))
            done.record()
        for tensor in sent:
            tensor.record_stream(self._computing)
        with torch.cuda.stream(self._fetching):
            self._fetching.wait_event(done)
            # From torch's store of pinned memory, to which they return when nobody holds the embeddings any more.
            fetched = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in results]
            for here, result in zip(fetched, results, strict=True):
                here.copy_(result, non_blocking=True)
                result.record_stream(self._fetching)
            # One that sleeps: a thread that spins would take a core from those that decode pictures.
            arrived = _event(blocking=True)
            arrived.record()
        started = Pass(*fetched)
        started.begun, started.done, started.arrived = begun, done, arrived
        return started


def staged(images: Sequence[npt.NDArray[np.uint8]], *, pinned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay pictures one after another into memory that a device can read.

    Returns:
        All pixels, uint8, and for each picture where it begins, its height and its width, int32.
    """
    pixels = torch.empty(sum(image.size for image in images), dtype=torch.uint8, pin_memory=pinned)
    places = torch.empty(len(images), 3, dtype=torch.int32, pin_memory=pinned)
    begin = 0
    for place, image in zip(places.numpy(), images, strict=True):
        place[:] = begin, *image.shape[:2]
        np.copyto(pixels.numpy()[begin : begin + image.size].reshape(image.shape), image)
        begin += image.size
    return pixels, places


def _stream() -> Any:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _event(**options: bool) -> Any:
    return torch.cuda.Event(**options)  # type: ignore[no-untyped-call]


def _captured(encoder: Encoder, size: int, stream: Any, pool: Any) -> torch.cuda.CUDAGraph:
    with torch.cuda.stream(stream):
        # Once without: kernels are compiled, and libraries choose theirs and take what memory they want.
        encoder.transform(size)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads of this process may have the device do something else meanwhile.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        encoder.transform(size)
    return graph
