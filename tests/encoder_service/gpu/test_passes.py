"""Passes on a device, with an encoder that stands in for the GPU's."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from encoder_service.gpu.passes import GpuPasses, staged
from tests.encoder_service.pictures import scene


class _Means:
    """Gives each picture's mean as its embedding; has memory for two pictures."""

    device = torch.device("cpu")

    def __init__(self, most: int) -> None:
        if most > 2:
            raise torch.OutOfMemoryError("no memory")
        self._means: list[float] = []

    def take(self, pixels: torch.Tensor, places: torch.Tensor) -> None:
        ends = [begin + height * width * 3 for begin, height, width in places.tolist()]
        self._means = [float(pixels[begin:end].float().mean()) for (begin, *_), end in zip(places, ends, strict=True)]

    def transform(self, pictures: int) -> None:
        assert len(self._means) == pictures

    def give(self, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self._means).view(-1, 1, 1, 1), torch.zeros(pictures, 1, dtype=torch.int32)


def test_pictures_are_laid_one_after_another() -> None:
    """Staged pictures have no gaps between them, and their places say where each is and how large; views are copied."""
    images = [scene(20, 30), scene(40, 10, seed=1)[::2]]
    pixels, places = staged(images, pinned=False)
    assert places.tolist() == [[0, 20, 30], [20 * 30 * 3, 20, 10]]
    for (begin, height, width), image in zip(places.tolist(), images, strict=True):
        found = pixels[begin : begin + height * width * 3].numpy().reshape(height, width, 3)
        np.testing.assert_array_equal(found, image)


def test_batches_that_do_not_fit_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Without memory for large batches the encoder is built for smaller ones, and says so."""
    with caplog.at_level(logging.WARNING):
        passes = GpuPasses(_Means, (1, 2, 4, 8))
    assert passes.batch_sizes == (1, 2)
    assert len(caplog.records) == 2
    assert "batches of 8" in caplog.text
    images = [scene(20, 30), scene(40, 10, seed=1)]
    found = passes.start(images)()
    np.testing.assert_allclose(found.ravel(), [image.mean() for image in images], rtol=1e-5)


def test_a_gpu_without_memory_for_one_picture_is_an_error() -> None:
    """Where not even a single picture fits, building raises."""
    with pytest.raises(torch.OutOfMemoryError):
        GpuPasses(lambda most: _Means(3), (1, 2))
