"""Outlines of things: every shape is a list of parts, every part a uint8 mask of the scene's size.

Sizes and positions are fractions of the scene's side, so that a layout does not depend on the resolution.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
Points = NDArray[np.float64]


def _fill(points: Points, side: int) -> Mask:
    """Fills a closed outline (Nx2, X and Y as fractions of the side)."""
    mask = np.zeros((side, side), np.uint8)
    fixed = np.round(np.clip(points, -4, 5) * side * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 1, lineType=cv2.LINE_8, shift=4)
    return mask


def _placed(unit: Points, centre: Points, size: float, turn: float, aspect: float) -> Points:
    """Moves an outline from the unit circle's frame into the scene."""
    stretched = unit * size * np.array([aspect**0.5, aspect**-0.5])
    cos, sin = np.cos(turn), np.sin(turn)
    return np.asarray(stretched @ np.array([[cos, sin], [-sin, cos]]) + centre, np.float64)


def _round_outline(rng: np.random.Generator, roughness: float, fall: float) -> Points:
    """A closed curve around the origin; a large `fall` gives smooth blobs, a small one ragged rocks."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    waves = np.arange(1, 40)
    weight = rng.normal(0, 1, 39) * roughness * waves**-fall
    log_radius = (weight[:, None] * np.cos(waves[:, None] * angle + rng.uniform(0, 6.3, (39, 1)))).sum(0)
    return np.asarray(
        np.exp(np.clip(log_radius, -1.5, 1))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), np.float64
    )


def _polygon(rng: np.random.Generator) -> Points:
    count = int(rng.integers(3, 9))
    angle = np.sort(rng.uniform(0, 2 * np.pi, count))
    return np.asarray(rng.uniform(0.5, 1.3, (count, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1), np.float64)


def _box(rng: np.random.Generator) -> Points:
    corners = np.array([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]])
    return corners + rng.normal(0, 0.12, (4, 2)) * (rng.random() < 0.6)


def _profile(rng: np.random.Generator) -> Points:
    """A mirrored silhouette: vase, bust, bottle, tower."""
    knots = rng.uniform(0.12, 0.8, int(rng.integers(3, 7)))
    y = np.linspace(-1, 1, 60)
    half = np.interp(y, np.linspace(-1, 1, len(knots)), knots)
    if rng.random() < 0.75:
        half = np.convolve(np.pad(half, 4, mode="edge"), np.ones(9) / 9, "valid")
    return np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]])


def _limb(start: Points, end: Points, first: float, last: float) -> Points:
    """A tapered capsule from `start` to `end` with half widths `first` and `last`."""
    axis = np.arctan2(end[1] - start[1], end[0] - start[0])
    half = np.linspace(-np.pi / 2, np.pi / 2, 9)
    tip = end + last * np.stack([np.cos(axis + half), np.sin(axis + half)], 1)
    root = start + first * np.stack([np.cos(axis + np.pi + half), np.sin(axis + np.pi + half)], 1)
    return np.concatenate([tip, root])


def _creature(rng: np.random.Generator) -> list[Points]:
    """A body with head, limbs and tail, as separate outlines; the body comes last, on top."""
    body = _round_outline(rng, 0.25, 1.6) * np.array([0.7, rng.uniform(0.3, 0.6)])
    parts: list[Points] = []
    for _ in range(int(rng.integers(1, 6))):
        root = body[rng.integers(len(body))] * 0.8
        way = root / (np.hypot(*root) + 1e-6) + rng.normal(0, 0.5, 2)
        knee = root + way * rng.uniform(0.15, 0.45)
        thick = rng.uniform(0.04, 0.18)
        parts.append(_limb(root, knee, thick * 1.2, thick))
        if rng.random() < 0.6:
            foot = knee + (way + rng.normal(0, 0.8, 2)) * rng.uniform(0.1, 0.4)
            parts.append(_limb(knee, foot, thick, thick * rng.uniform(0.4, 1)))
    if rng.random() < 0.75:
        neck = body[rng.integers(len(body))]
        head = _round_outline(rng, 0.15, 1.8) * rng.uniform(0.15, 0.35)
        parts.append(head + neck * rng.uniform(0.9, 1.25))
    return [*parts, body]


def _branches(rng: np.random.Generator) -> list[Points]:
    """A thin forked thing: tree, cable, fence, antenna."""
    parts: list[Points] = []

    def grow(root: Points, angle: float, length: float, thick: float, depth: int) -> None:
        end = root + length * np.array([np.cos(angle), np.sin(angle)])
        parts.append(_limb(root, end, thick, thick * 0.75))
        for _ in range(int(rng.integers(1, 4)) if depth else 0):
            at = root + (end - root) * rng.uniform(0.4, 1)
            grow(at, angle + rng.normal(0, 0.7), length * rng.uniform(0.4, 0.8), thick * 0.65, depth - 1)

    grow(np.array([0.0, 1.0]), -np.pi / 2 + rng.normal(0, 0.2), rng.uniform(0.6, 1.4), rng.uniform(0.05, 0.16), 2)
    return parts


def _outlines(rng: np.random.Generator) -> list[Points]:
    """Draws the outlines of one object in the frame of the unit circle."""
    makers: tuple[tuple[float, Callable[[], list[Points]]], ...] = (
        (0.24, lambda: [_round_outline(rng, rng.uniform(0.05, 0.5), 1.4)]),
        (0.10, lambda: [_round_outline(rng, rng.uniform(0.2, 0.5), 0.8)]),
        (0.12, lambda: [_polygon(rng)]),
        (0.12, lambda: [_box(rng)]),
        (0.14, lambda: [_profile(rng)]),
        (0.22, lambda: _creature(rng)),
        (0.06, lambda: _branches(rng)),
    )
    chances = np.array([chance for chance, _ in makers])
    return makers[int(rng.choice(len(makers), p=chances / chances.sum()))][1]()


class Shape:
    """One object's outlines, which can be stamped several times (a herd, a row of windows)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.outlines = _outlines(rng)
        self.aspect = float(np.exp(rng.uniform(-0.7, 0.7)))
        self.turn = float(rng.normal(0, 0.35) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi))
        self.hole = rng.uniform(0.2, 0.6) if rng.random() < 0.06 else 0.0

    def stamp(self, centre: Points, size: float, turn: float, side: int) -> list[Mask]:
        """Draws the parts at `centre` (X, Y fractions) with radius `size`; returns (side)x(side) masks."""
        masks = []
        for outline in self.outlines:
            masks.append(_fill(_placed(outline, centre, size, self.turn + turn, self.aspect), side))
        if self.hole:
            angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
            ring = np.stack([np.cos(angle), np.sin(angle)], 1) * self.hole
            gap = _fill(_placed(ring, centre, size, self.turn + turn, self.aspect), side)
            masks = [mask & (1 - gap) for mask in masks]
        return masks


def smooth_noise(rng: np.random.Generator, side: int, cells: int, rough: float = 0.0) -> NDArray[np.float32]:
    """A smooth random field with about `cells` bumps a side; `rough` adds finer octaves."""
    field = np.zeros((side, side), np.float32)
    weight = 1.0
    for _ in range(4 if rough else 1):
        grid = rng.standard_normal((cells + 2, cells + 2)).astype(np.float32)
        field += weight * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight * rough, cells * 2
    return field


def below_horizon(rng: np.random.Generator, side: int) -> Mask:
    """Everything below a random skyline: ground, hills, water, a wall of trees."""
    x = np.linspace(0, 1, 96)
    line = rng.uniform(0.15, 0.85) + rng.normal(0, 0.12) * (x - 0.5)
    rough = abs(rng.normal(0, 0.12)) * (rng.random() < 0.7)
    waves = np.arange(1, 32)
    fall = rng.uniform(0.8, 1.8)
    phases = rng.uniform(0, 6.3, (31, 1))
    line = line + (
        rough * rng.normal(0, 1, (31, 1)) * waves[:, None] ** -fall * np.cos(waves[:, None] * x * 3 + phases)
    ).sum(0)
    return _fill(np.concatenate([np.stack([x, line], 1), [[1.1, 2.0], [-0.1, 2.0]]]), side)


def partition(rng: np.random.Generator, side: int) -> NDArray[np.int64]:
    """Divides the whole scene into two to six winding territories; returns their numbers, (side)x(side)."""
    cells, rough = int(rng.integers(1, 4)), rng.uniform(0, 0.5)
    fields = [smooth_noise(rng, side, cells, rough) for _ in range(int(rng.integers(2, 7)))]
    return np.asarray(np.argmax(np.stack(fields), 0), np.int64)
