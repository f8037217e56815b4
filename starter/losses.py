"""Losses of the training: mask loss, best of three, predicted IoU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Twice the cross entropy plus dice, per mask.

    With batches as small as a CPU affords, the paper's focal loss stays at the empty mask for hundreds of steps; cross
    entropy does not.

    Args:
      logits (Tensor): ...xHxW float32.
      target (Tensor): ...xHxW float32 in 0..1, soft at the edges; broadcast against the logits.

    Returns:
      One loss per mask, of shape (...).
    """
    target = target.expand_as(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(-2).mean(-1)
    share = logits.sigmoid()
    overlap = (share * target).flatten(-2).sum(-1)
    dice = 1 - (2 * overlap + 1) / (share.flatten(-2).sum(-1) + target.flatten(-2).sum(-1) + 1)
    return 2 * entropy + dice


@torch.no_grad()
def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of thresholded masks, per mask; shapes as in `mask_loss`."""
    ours, theirs = logits > 0, (target > 0.5).expand_as(logits)
    both = (ours & theirs).flatten(-2).sum(-1)
    return both / (ours | theirs).flatten(-2).sum(-1).clamp(min=1)


def round_loss(logits: Tensor, predicted: Tensor, target: Tensor, ambiguous: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of one round of prompts.

    The single mask (entry 0) answers for every prompt, fully where the prompt is not ambiguous; of the three others
    only the best is taught, so that they specialise, and a little all of them, so that none dies.

    Args:
      logits (Tensor): BxPx4xHxW.
      predicted (Tensor): BxPx4, the model's own estimate of its IoU.
      target (Tensor): BxPxHxW in 0..1.
      ambiguous (Tensor): BxP float32, 1 where a prompt may mean several things, 0 where not.

    Returns:
      The loss and the true IoU of every mask, BxPx4.
    """
    logits, predicted = logits.float(), predicted.float()
    each = mask_loss(logits, target[:, :, None])
    iou = mask_iou(logits, target[:, :, None])
    three = each[..., 1:].min(-1).values + 0.05 * each[..., 1:].mean(-1)
    single = each[..., 0]
    loss = (three * (0.3 + 0.7 * ambiguous) + single * (1 - 0.6 * ambiguous)).mean()
    loss = loss + (predicted - iou).square().mean(-1).mean()
    return loss, iou
