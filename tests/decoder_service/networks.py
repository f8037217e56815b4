"""Seeded networks and embeddings for the decoder's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from decoder_service.model import MaskPredictor
from decoder_service.team import Team
from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.geometry import EMBEDDING_SHAPE
from sam.modeling import build_mask_decoder, build_prompt_encoder

MODEL = ModelIdentity("vit_b", "ab" * 32, CheckpointOrigin.RANDOM)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: under a busy machine, several wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def seeded_networks(seed: int = 0) -> tuple[Any, Any]:
    """Return SAM's prompt encoder and mask decoder with random weights.

    Queries and keys are scaled up until attention is as uneven as a trained network's (scores with a deviation of about
    6), and biases and norms are moved off zero and one: a path that forgets one of them must not pass.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        networks = build_prompt_encoder(), build_mask_decoder()
        for network in networks:
            for name, tensor in network.named_parameters():
                if "q_proj.weight" in name or "k_proj.weight" in name:
                    tensor.mul_(3)
                elif tensor.ndim == 1:
                    tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return networks


@cache
def predictor(engine: str = "fast", precision: str = "float32", threads: int = 1) -> MaskPredictor:
    """Return a predictor over the networks of seed 0."""
    options: dict[str, Any] = {"engine": engine, "precision": precision, "team": Team(threads)}
    return MaskPredictor(*seeded_networks(), **options)


@cache
def seeded_features(seed: int = 0) -> npt.NDArray[np.float32]:
    """Return an image embedding, float32 1x256x64x64: smooth over the picture, with some noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 2 * np.pi, 64)
    phases, speeds = rng.uniform(0, 2 * np.pi, (2, 256, 1)), rng.uniform(0.2, 3, (2, 256, 1))
    rows, columns = np.sin(speeds * ramp + phases)
    features = rows[:, :, None] * columns[:, None, :] + rng.normal(0, 0.2, (256, 64, 64))
    embedding: npt.NDArray[np.float32] = features.astype(np.float32).reshape(EMBEDDING_SHAPE)
    return embedding
