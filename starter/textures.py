"""Procedural surface patterns: small two-channel tiles that a scene crops, turns, stretches and colours.

A tile is a HxWx2 float32 array of pattern values with zero mean and unit deviation per channel; the colours come later,
so that a few hundred tiles give an unlimited number of surfaces.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TILE = 256  # tile side in pixels


def _normalised(field: Array) -> Array:
    """Shifts and scales a field to zero mean and unit deviation, with its tails cut at three deviations."""
    field = field - field.mean()
    return np.asarray(np.clip(field / (field.std() + 1e-6), -3, 3).astype(np.float32), np.float32)


def power_noise(rng: np.random.Generator, side: int = TILE, slope: float | None = None) -> Array:
    """Draws noise whose amplitude falls as frequency^-slope, optionally stretched along one direction.

    Args:
      side (int): side of the returned field in pixels.
      slope (float or None): 0.5 looks like sand, 2 like clouds; random when None.

    Returns:
      A (side)x(side) float32 field, normalised and periodic.
    """
    slope = float(rng.uniform(0.5, 2.2)) if slope is None else slope
    fy = np.fft.fftfreq(side)[:, None] * side
    fx = np.fft.rfftfreq(side)[None] * side
    turn, stretch = rng.uniform(0, np.pi), np.exp(abs(rng.normal(0, 0.6)))
    along = fx * np.cos(turn) + fy * np.sin(turn)
    across = (-fx * np.sin(turn) + fy * np.cos(turn)) * stretch
    radius = np.hypot(along, across) + 0.7
    amplitude = radius**-slope
    if rng.random() < 0.3:  # a band of frequencies: ripples, fur, scales
        centre = np.exp(rng.uniform(np.log(4), np.log(50)))
        amplitude = np.exp(-(((radius - centre) / (centre * rng.uniform(0.15, 0.5))) ** 2))
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    return _normalised(np.fft.irfft2(spectrum * amplitude, (side, side)).astype(np.float32))


def _stripes(rng: np.random.Generator) -> Array:
    yy, xx = np.mgrid[0:TILE, 0:TILE].astype(np.float32) / TILE
    turn = rng.uniform(0, np.pi)
    phase = (xx * np.cos(turn) + yy * np.sin(turn)) * np.exp(rng.uniform(np.log(20), np.log(250)))
    phase += rng.uniform(0, 2.5) * power_noise(rng, slope=2.0)
    wave = np.sin(phase)
    return np.asarray(np.tanh(wave * rng.uniform(0.5, 6)) if rng.random() < 0.6 else wave, np.float32)


def _cells(rng: np.random.Generator) -> Array:
    count = int(np.exp(rng.uniform(np.log(30), np.log(1500))))
    seeds = np.ones((TILE, TILE), np.uint8)
    seeds[rng.integers(0, TILE, count), rng.integers(0, TILE, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    tone = rng.standard_normal(int(labels.max()) + 1).astype(np.float32)[labels]
    return np.asarray(tone * rng.uniform(0, 1) - distance / (distance.std() + 1e-6) * rng.uniform(0, 1.5), np.float32)


def _leaves(rng: np.random.Generator) -> Array:
    """Many small overlapping blades, leaves or pebbles."""
    field = np.zeros((TILE, TILE), np.float32)
    length = np.exp(rng.uniform(np.log(3), np.log(22)))
    thin, turn, spread = rng.uniform(0.12, 1), rng.uniform(0, 180), rng.choice([8, 40, 180])
    for _ in range(int(min(2500, 2.5 * TILE * TILE / (length * length * thin * 3 + 4)))):
        centre = (int(rng.integers(0, TILE)), int(rng.integers(0, TILE)))
        axes = (max(1, round(length * rng.uniform(0.6, 1.4))), max(1, round(length * thin)))
        tone = float(rng.normal())
        cv2.ellipse(field, centre, axes, turn + rng.normal() * spread, 0, 360, tone, -1)
    return cv2.GaussianBlur(field, (0, 0), rng.uniform(0.4, 1.0)).astype(np.float32)


def _grid(rng: np.random.Generator) -> Array:
    """Bricks, planks, windows, checks: two crossing square waves, rows optionally shifted."""
    yy, xx = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    height = np.exp(rng.uniform(np.log(6), np.log(50)))
    width = height * np.exp(rng.uniform(-0.5, 1.5))
    row = np.floor(yy / height)
    shifted = xx + (row % 2) * width / 2 * (rng.random() < 0.5)
    joint = rng.uniform(0.05, 0.45)
    inside = ((yy / height) % 1 > joint) & ((shifted / width) % 1 > joint * height / width)
    tone = rng.standard_normal((97,)).astype(np.float32)
    index = (row * 31 + np.floor(shifted / width)).astype(np.int64) % 97
    return np.asarray(inside * 2.0 + tone[index] * rng.uniform(0, 0.8), np.float32)


def _ridges(rng: np.random.Generator) -> Array:
    return -np.abs(power_noise(rng, slope=rng.uniform(1.0, 1.8)))


def _spots(rng: np.random.Generator) -> Array:
    field = power_noise(rng, slope=rng.uniform(0.9, 1.8))
    return np.asarray(np.tanh((field - rng.uniform(-1, 1)) * rng.uniform(3, 12)), np.float32)


def _grain(rng: np.random.Generator) -> Array:
    field = rng.standard_normal((TILE, TILE)).astype(np.float32)
    return cv2.GaussianBlur(field, (0, 0), rng.uniform(0.4, 2.5)).astype(np.float32)


_PATTERNS = (power_noise, power_noise, _stripes, _cells, _leaves, _leaves, _grid, _ridges, _spots, _grain)


def pattern(rng: np.random.Generator) -> Array:
    """Draws one random TILExTILE pattern, normalised."""
    return _normalised(np.asarray(_PATTERNS[rng.integers(len(_PATTERNS))](rng), np.float32))


def texture_bank(count: int, seed: int) -> Array:
    """Draws `count` tiles, as a (count)xTILExTILEx2 float32 array."""
    rng = np.random.default_rng(seed)
    bank = np.empty((count, TILE, TILE, 2), np.float32)
    for tile in bank:
        first = pattern(rng)
        second = pattern(rng) if rng.random() < 0.6 else first
        if rng.random() < 0.35:  # two patterns on one surface, say spots on grain
            first = _normalised(first + rng.uniform(0.3, 1) * pattern(rng))
        tile[..., 0], tile[..., 1] = first, second
    return bank


def crop(bank: Array, rng: np.random.Generator, height: int, width: int, scale: float) -> Array:
    """Cuts a turned, scaled and sometimes foreshortened piece out of a random tile.

    Args:
      bank (np.ndarray): tiles, NxTILExTILEx2.
      height, width (int): size of the piece in pixels.
      scale (float): magnification, output pixels per tile pixel; jittered by up to 2.2 times.

    Returns:
      (height)x(width)x2 float32 pattern values.
    """
    tile = bank[rng.integers(len(bank))]
    zoom = scale * np.exp(rng.uniform(-0.8, 0.8))
    turn, aspect = rng.uniform(0, 2 * np.pi), np.exp(rng.normal(0, 0.2))
    inverse = np.array(
        [
            [np.cos(turn) / zoom, -np.sin(turn) / zoom * aspect, rng.uniform(0, TILE)],
            [np.sin(turn) / zoom, np.cos(turn) / zoom * aspect, rng.uniform(0, TILE)],
            [0, 0, 1],
        ],
        np.float64,
    )
    if rng.random() < 0.25:  # a plane running away from the viewer
        inverse[2, 1] = rng.uniform(-0.6, 0.6) / max(height, 1)
        inverse[2, 0] = rng.uniform(-0.3, 0.3) / max(width, 1)
    return cv2.warpPerspective(
        tile,
        inverse,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    ).astype(np.float32, copy=False)
