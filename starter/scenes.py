"""Scenes drawn from a seed: a picture, and for every pixel the part, the thing and the group of things it belongs to.

Layout, surfaces and light are drawn at random: territories and skylines behind, things with parts in front of one
another, surfaces from the texture bank in related colours (often those of what lies behind), dome and gradient shading,
soft shadows, haze, defocus, noise and JPEG. What a surface shows (spots, bricks, leaves, cast shadows, tiny
decorations) is not labelled: it teaches that a pattern is no boundary.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from . import textures
from .shapes import Mask, Shape, below_horizon, partition, smooth_noise

Array = NDArray[np.float32]

LEVELS = 3  # part, thing, group
MAX_LABELS = 255
SMALLEST = 0.0015  # share of the scene under which a thing is decoration and gets no label


@dataclass(frozen=True)
class Scene:
    """One drawn picture with its labels.

    Attributes:
      image (np.ndarray): HxWx3 uint8, RGB.
      parts (np.ndarray): HxW uint8, the number of the visible part at each pixel.
      table (np.ndarray): 3x256 uint8; row `level` maps a part's number to that of its part, thing or group.
    """

    image: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    table: NDArray[np.uint8]


class _Painter:
    """The canvas of one scene, painted from back to front."""

    def __init__(self, side: int, bank: Array, rng: np.random.Generator) -> None:
        self.side, self.bank, self.rng = side, bank, rng
        self.image = np.zeros((side, side, 3), np.float32)
        self.parts = np.zeros((side, side), np.uint8)
        self.table = np.zeros((LEVELS, 256), np.uint8)
        self.used = 0
        hues = rng.uniform(0, 1, int(rng.integers(1, 4)))
        self.palette = [self._natural(float(rng.choice(hues))) for _ in range(int(rng.integers(3, 8)))]
        self.contrast = float(np.exp(rng.normal(-0.3, 0.5)))
        self.light = float(rng.uniform(0, 2 * np.pi))

    def _natural(self, hue: float) -> Array:
        rng = self.rng
        saturation = rng.beta(1.3, 2.2)
        colour = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.06)) % 1, saturation, rng.uniform(0.15, 0.98))
        return np.array(colour, np.float32)

    def _colour(self, mask: Mask | None) -> Array:
        """A colour from the palette, or any, or one close to what the mask covers (camouflage)."""
        rng, kind = self.rng, self.rng.random()
        if mask is not None and kind < 0.3:
            under = np.array(cv2.mean(self.image, mask)[:3], np.float32)
            return under + rng.normal(0, 0.07, 3).astype(np.float32) + np.float32(rng.normal(0, 0.06))
        if kind < 0.75:
            picked = self.palette[int(rng.integers(len(self.palette)))]
            return picked * np.float32(np.exp(rng.normal(0, 0.2))) + rng.normal(0, 0.04, 3).astype(np.float32)
        return self._natural(float(rng.uniform()))

    def surface(self, height: int, width: int, mask: Mask | None, colour: Array | None = None) -> Array:
        """Paints a piece of one material, HxWx3 float32 around 0..1, unlit."""
        rng = self.rng
        colour = np.clip(self._colour(mask) if colour is None else colour, 0.02, 1.0)
        piece = np.empty((height, width, 3), np.float32)
        piece[:] = colour
        plain = rng.random() < 0.2  # sky, plaster, skin
        strength = 0.01 if plain else self.contrast * np.exp(rng.uniform(np.log(0.03), np.log(0.45)))
        values = textures.crop(self.bank, rng, height, width, self.side / 384)
        piece *= np.exp(np.clip(values[..., :1] * np.float32(strength), -2, 1.2))
        if rng.random() < 0.6:
            tint = rng.normal(0, 1, 3).astype(np.float32)
            piece += values[..., 1:] * (tint * np.float32(strength * rng.uniform(0, 0.4)))
        if rng.random() < 0.7:  # light falls off across the surface
            turn = rng.uniform(0, 2 * np.pi)
            ramp_x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
            ramp_y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
            slope = np.float32(rng.normal(0, 0.25))
            piece *= 1 + slope * (ramp_x * np.float32(np.cos(turn)) + ramp_y * np.float32(np.sin(turn)))
        if rng.random() < 0.35:
            uneven = smooth_noise(rng, 64, int(rng.integers(1, 5)))
            piece *= (1 + np.float32(rng.uniform(0.03, 0.2)) * cv2.resize(uneven, (width, height)))[..., None]
        return piece

    def new_label(self, thing: int | None = None, group: int | None = None) -> int:
        """Registers a part of `thing` in `group` (both new when None) and returns its number."""
        number = self.used = self.used + 1
        thing = number if thing is None else thing
        self.table[:, number] = number, thing, thing if group is None else group
        return number

    def full(self) -> bool:
        """Tells whether the numbers are used up."""
        return self.used >= MAX_LABELS - 8

    def fill(self, region: Mask, label: int) -> None:
        """Paints a background territory."""
        soft = cv2.GaussianBlur(region.astype(np.float32), (0, 0), self.side / 256 * self.rng.uniform(0.3, 1.5))
        piece = self.surface(self.side, self.side, None)
        self.image += soft[..., None] * (piece - self.image)
        self.parts[region > 0] = label

    def shadow(self, mask: Mask, size: float) -> None:
        """Darkens what lies beside a thing; the labels do not change."""
        rng, small = self.rng, max(32, self.side // 4)
        low = cv2.resize(mask.astype(np.float32), (small, small), interpolation=cv2.INTER_AREA)
        shift = np.array([np.cos(self.light), np.sin(self.light)]) * size * small * rng.uniform(0.05, 0.4)
        move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float64)
        low = cv2.warpAffine(low, move, (small, small))
        low = cv2.GaussianBlur(low, (0, 0), small * rng.uniform(0.006, 0.04))
        self.image *= 1 - np.float32(rng.uniform(0.15, 0.6)) * cv2.resize(low, (self.side, self.side))[..., None]

    def paint(self, mask: Mask, label: int | None, dome: float, colour: Array | None = None) -> None:
        """Paints one piece over what is there; `label` None makes it decoration.

        Args:
          mask (np.ndarray): HxW uint8.
          label (int or None): number written into the part map.
          dome (float): strength of the rounded shading, 0 for flat.
          colour (np.ndarray or None): RGB base colour, or random.
        """
        rng, side = self.rng, self.side
        x, y, width, height = cv2.boundingRect(mask)
        if width * height == 0:
            return
        x0, y0, x1, y1 = max(0, x - 3), max(0, y - 3), min(side, x + width + 3), min(side, y + height + 3)
        local = np.ascontiguousarray(mask[y0:y1, x0:x1])
        if colour is None:
            colour = self._colour(mask)
        piece = self.surface(y1 - y0, x1 - x0, None, colour)
        if dome:
            depth = cv2.distanceTransform(cv2.copyMakeBorder(local, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)
            depth = np.sqrt(depth[1:-1, 1:-1])
            depth = cv2.GaussianBlur(depth, (0, 0), max(1.0, 0.04 * (width + height)))
            slope = cv2.Sobel(depth, cv2.CV_32F, 1, 0) * np.cos(self.light) + cv2.Sobel(
                depth, cv2.CV_32F, 0, 1
            ) * np.sin(self.light)
            slope /= np.abs(slope).max() + 1e-6
            piece *= (1 - np.float32(dome) * slope)[..., None]
        soft = cv2.GaussianBlur(local.astype(np.float32), (0, 0), side / 256 * rng.uniform(0.3, 0.9))
        view = self.image[y0:y1, x0:x1]
        view += soft[..., None] * (piece - view)
        if label is not None:
            self.parts[y0:y1, x0:x1][local > 0] = label

    def thing(self, stamp: list[Mask], dome: float, colours: list[Array], group: int | None) -> None:
        """Paints a thing with its parts, its shadow and its decorations."""
        rng = self.rng
        whole = np.bitwise_or.reduce(stamp)
        share = float(whole.mean())
        if share == 0 or self.full():
            return
        if rng.random() < 0.45:
            self.shadow(whole, float(np.sqrt(share)))
        if share < SMALLEST:
            self.paint(whole, None, dome, colours[0])
            return
        thing = self.new_label(None, group)
        self.paint(whole, thing, dome, colours[0])
        for number, part in enumerate(stamp[:-1]):  # limbs and head in their own material
            if colours[1 + number % (len(colours) - 1)] is not colours[0]:
                label = self.new_label(thing, group) if part.mean() > SMALLEST else None
                self.paint(part, label, dome, colours[1 + number % (len(colours) - 1)])
        for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.4 else 0):
            self._patch(whole, share, thing, group)

    def _patch(self, whole: Mask, share: float, thing: int, group: int | None) -> None:
        """Paints a part inside a thing: a shirt, a window, a blaze; a small one is decoration."""
        rng = self.rng
        ys, xs = np.nonzero(whole)
        at = int(rng.integers(len(ys)))
        centre = np.array([xs[at], ys[at]]) / self.side
        size = np.sqrt(share) * rng.uniform(0.1, 0.5)
        part = np.bitwise_or.reduce(Shape(rng).stamp(centre, size, 0.0, self.side)) & whole
        if part.any() and not self.full():
            label = self.new_label(thing, group) if part.mean() > SMALLEST else None
            self.paint(part, label, 0.0)


def _background(painter: _Painter) -> None:
    """Sky, territories and skylines, each a thing of its own; sometimes out of focus."""
    rng, side = painter.rng, painter.side
    painter.fill(np.ones((side, side), np.uint8), painter.new_label())
    if rng.random() < 0.35:
        territories = partition(rng, side)
        for number in range(int(territories.max()) + 1):
            region = (territories == number).astype(np.uint8)
            if region.any():
                painter.fill(region, painter.new_label())
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.3, 0.35, 0.25, 0.1]))):
        painter.fill(below_horizon(rng, side), painter.new_label())
    if rng.random() < 0.3:
        painter.image = np.asarray(
            cv2.GaussianBlur(painter.image, (0, 0), side / 256 * rng.uniform(0.5, 4)), np.float32
        )


def _things(painter: _Painter) -> None:
    rng = painter.rng
    count = int(np.exp(rng.uniform(np.log(2), np.log(18))))
    sizes = np.sort(np.exp(rng.uniform(np.log(0.035), np.log(0.45), count)))
    if rng.random() < 0.5:
        rng.shuffle(sizes)
    for size in sizes:
        shape = Shape(rng)
        dome = float(rng.uniform(0.1, 0.6)) if rng.random() < 0.5 else 0.0
        own = painter._colour(None)
        under = np.array(painter.image[tuple(rng.integers(0, painter.side, 2))], np.float32)
        if rng.random() < 0.3:
            own = under + rng.normal(0, 0.06, 3).astype(np.float32)
        colours = [own, own if rng.random() < 0.55 else painter._colour(None)]
        centre = rng.uniform(0.02, 0.98, 2)
        copies = int(rng.integers(2, 7)) if rng.random() < 0.14 else 1
        group = None
        for copy in range(copies):
            before = painter.used
            stamp = shape.stamp(centre, float(size), float(rng.normal(0, 0.15) * bool(copy)), painter.side)
            painter.thing(stamp, dome, colours, group)
            if copies > 1 and group is None and painter.used > before:
                group = before + 1
            centre = centre + rng.normal(0, 1.3, 2) * size
        if rng.random() < 0.06:
            painter.image = np.asarray(
                cv2.GaussianBlur(painter.image, (0, 0), painter.side / 256 * rng.uniform(0.4, 1.5)), np.float32
            )


def _photograph(image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light, haze, camera and file: takes HxWx3 float32 around 0..1, returns uint8."""
    side = image.shape[0]
    if rng.random() < 0.5:
        image = image * (1 + np.float32(rng.uniform(0.05, 0.25)) * smooth_noise(rng, side, 2)[..., None])
    if rng.random() < 0.3:  # dappled light
        edge = smooth_noise(rng, side, int(rng.integers(1, 8)), 0.4) - np.float32(rng.normal(0, 0.8))
        lit = 1 / (1 + np.exp(np.clip(-edge * np.float32(rng.uniform(2, 25)), -30, 30)))
        image = image * (1 - np.float32(rng.uniform(0.15, 0.55)) * lit)[..., None]
    if rng.random() < 0.25:
        depth = np.linspace(float(rng.uniform(0, 0.6)), 0, side, dtype=np.float32)[:, None, None]
        image = image * (1 - depth) + depth * rng.uniform(0.5, 0.95, 3).astype(np.float32)
    image = np.clip(image, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    grey = image.mean(-1, keepdims=True)
    keep = np.float32(0 if rng.random() < 0.05 else rng.uniform(0.5, 1.15))
    image = grey + (image - grey) * keep
    image = (image - 0.45) * np.float32(rng.uniform(0.65, 1.15)) + np.float32(0.45 + rng.normal(0, 0.06))
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), side / 256 * rng.uniform(0.3, 1.1)), np.float32)
    if rng.random() < 0.6:
        image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.003, 0.05))
    photo = np.clip(image * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        _, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 92))])
        photo = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return photo


def draw_scene(side: int, bank: Array, rng: np.random.Generator) -> Scene:
    """Draws one scene of (side)x(side) pixels with surfaces out of `bank` (see `textures.texture_bank`)."""
    painter = _Painter(side, bank, rng)
    _background(painter)
    _things(painter)
    return Scene(_photograph(painter.image, rng), painter.parts, painter.table)
