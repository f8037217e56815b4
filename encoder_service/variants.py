"""The image encoders that can be served, by the name of their model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sam.geometry import INPUT_SIDE
from sam.modeling import upstream_modeling

STARTER = "starter"
"""The small model that comes with the distribution; its image encoder is no ViT."""


@dataclass(frozen=True)
class VitVariant:
    """What distinguishes SAM's image encoders from one another.

    Source: `segment_anything/build_sam.py`.
    """

    embed_dim: int
    """The channels of a token."""

    depth: int
    """The number of transformer blocks."""

    heads: int
    """The number of attention heads; divides `embed_dim`."""

    global_attn_indexes: tuple[int, ...]
    """The blocks that attend over all 64x64 tokens; the others stay in windows of 14x14."""


VIT_VARIANTS = {
    "vit_b": VitVariant(embed_dim=768, depth=12, heads=12, global_attn_indexes=(2, 5, 8, 11)),
    "vit_l": VitVariant(embed_dim=1024, depth=24, heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": VitVariant(embed_dim=1280, depth=32, heads=16, global_attn_indexes=(7, 15, 23, 31)),
}


def build_image_encoder(model: str | VitVariant) -> nn.Module:
    """Build an image encoder whose weights are still to be loaded, in evaluation mode.

    A ViT is built on torch's `meta` device, without memory of its own: a checkpoint has a tensor for each of its
    parameters, and initialising vit_h for nothing would take longer than reading it.

    Args:
        model: `vit_b`, `vit_l`, `vit_h` or `starter`; or a variant of one's own, for tests.

    Returns:
        A module from the normalised, padded input frame, Bx3x1024x1024, to Bx256x64x64.

    Raises:
        ValueError: there is no model of that name.
    """
    if isinstance(model, VitVariant):
        return _build_vit(model)
    if model == STARTER:
        # Imported only when served: a ViT's replica needs nothing of it.
        from encoder_service.starter_encoder import StarterImageEncoder

        starter: nn.Module = StarterImageEncoder()
        return starter.eval()
    if model not in VIT_VARIANTS:
        raise ValueError(f"there is no model {model!r}; there are {', '.join([*VIT_VARIANTS, STARTER])}")
    return _build_vit(VIT_VARIANTS[model])


def _build_vit(variant: VitVariant) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = upstream_modeling().ImageEncoderViT(
            depth=variant.depth,
            embed_dim=variant.embed_dim,
            img_size=INPUT_SIDE,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=variant.heads,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=variant.global_attn_indexes,
            window_size=14,
            out_chans=256,
        )
    return module.eval()
