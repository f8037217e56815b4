"""Small image encoders of SAM's architecture with seeded weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from encoder_service.variants import VitVariant, build_image_encoder

TINY = VitVariant(embed_dim=32, depth=2, heads=2, global_attn_indexes=(1,))
"""One block with windows and one without, at a fraction of vit_b's cost."""


def seeded_weights(model: str | VitVariant, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random weights under which every part of the network matters.

    Upstream's own start values would hide faults: position tables are zero, biases are zero and
    layer norms are the identity.
    """
    return seeded({name: tensor.shape for name, tensor in build_image_encoder(model).state_dict().items()}, seed)


def seeded(shapes: Mapping[str, torch.Size], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return such weights for a network whose parameters have these names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name or name.startswith(("neck.1", "neck.3")):
            weights[name] = noise * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif name == "pos_embed" or "rel_pos" in name:
            weights[name] = noise * 0.2
        elif noise.ndim >= 2:
            weights[name] = noise * shape[1:].numel() ** -0.5
        else:
            weights[name] = noise * 0.1
    return weights


def loaded(model: str | VitVariant, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Return the network of a model with these weights."""
    network = build_image_encoder(model)
    network.load_state_dict(weights, assign=True)
    return network
