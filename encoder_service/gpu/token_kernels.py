"""What is bound by memory around the products, in Triton: pictures to patches, layer norms, and the last step."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def patches_kernel(
    pixels,
    places,
    patches,
    FRAME: tl.constexpr,
    PATCH: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Normalise a row of pixels of a picture, pad it, and write it to where its patches have it.

    `pixels`: uint8, the pictures' rows without gaps, RGB; `places`, for each picture: where in `pixels` it begins, its
    height and its width, int32. `patches`: pictures x patches x (PATCH rows x PATCH columns x 3). `WIDTH`: 3 FRAME, or
    the next power of two. Beyond a picture everything is zero, which before normalising would be the mean colour.
    """
    row, picture = tl.program_id(0), tl.program_id(1)
    begin = tl.load(places + 3 * picture)
    height, width = tl.load(places + 3 * picture + 1), tl.load(places + 3 * picture + 2)
    place = tl.arange(0, WIDTH)
    colour = place % 3
    known = place < tl.where(row < height, width * 3, 0)
    value = tl.load(pixels + begin + row * width * 3 + place, mask=known, other=0).to(tl.float32)
    # Source: `segment_anything/build_sam.py`, `pixel_mean` and `pixel_std`.
    mean = tl.where(colour == 0, 123.675, tl.where(colour == 1, 116.28, 103.53))
    deviation = tl.where(colour == 0, 58.395, tl.where(colour == 1, 57.12, 57.375))
    value = tl.where(known, (value - mean) / deviation, 0.0)
    across: tl.constexpr = FRAME // PATCH
    patch = (picture * across + row // PATCH) * across + place // (3 * PATCH)
    within = row % PATCH * (3 * PATCH) + place % (3 * PATCH)
    out = patches + patch * (3 * PATCH * PATCH) + within
    tl.store(out, value.to(patches.dtype.element_ty), mask=place < 3 * FRAME)


@triton.jit
def norm_kernel(
    tokens,
    offset,
    weight,
    bias,
    normed,
    count,
    channels,
    epsilon,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """Apply a layer norm to some tokens, to which `offset` was still to be added if `SHIFTED`; sums are float32.

    `tokens` and `normed`: count x channels. `WIDTH`: the channels, or the next power of two.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, WIDTH)
    own = (channel < channels)[None, :]
    known = own & (token < count)[:, None]
    place = token[:, None] * channels + channel[None, :]
    value = tl.load(tokens + place, mask=known, other=0.0).to(tl.float32)
    if SHIFTED:
        value += tl.load(offset + channel[None, :], mask=own, other=0.0)
    value = tl.where(own, value - (tl.sum(value, 1) / channels)[:, None], 0.0)
    value *= tl.rsqrt(tl.sum(value * value, 1) / channels + epsilon)[:, None]
    value *= tl.load(weight + channel[None, :], mask=own, other=0.0)
    value += tl.load(bias + channel[None, :], mask=own, other=0.0)
    tl.store(normed + place, value.to(normed.dtype.element_ty), mask=known)


@triton.jit
def embedding_kernel(
    tokens,
    weight,
    bias,
    embedding,
    flaws,
    count,
    epsilon,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Apply the neck's last layer norm to some tokens of one picture, and write them with their channels first.

    `tokens`: pictures x count x CHANNELS. `embedding`: pictures x CHANNELS x count float32. `flaws`: pictures x
    programs for each, int32: how many of a program's numbers are not finite.
    """
    piece, picture = tl.program_id(0), tl.program_id(1)
    token = piece * TOKENS + tl.arange(0, TOKENS)
    real = (token < count)[:, None]
    channel = tl.arange(0, CHANNELS)
    tokens += (picture * count + token)[:, None] * CHANNELS
    value = tl.load(tokens + channel[None, :], mask=real, other=0.0).to(tl.float32)
    value -= (tl.sum(value, 1) / CHANNELS)[:, None]
    value *= tl.rsqrt(tl.sum(value * value, 1) / CHANNELS + epsilon)[:, None]
    value = value * tl.load(weight + channel)[None, :] + tl.load(bias + channel)[None, :]
    out = embedding + picture * CHANNELS * count + channel[None, :] * count + token[:, None]
    tl.store(out, value, mask=real)
    # NaN is below nothing.
    flawed = tl.where(real & ~(tl.abs(value) < float("inf")), 1, 0)
    tl.store(flaws + picture * tl.num_programs(0) + piece, tl.sum(flawed))
