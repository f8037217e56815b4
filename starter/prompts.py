"""Training batches: views of scenes, target masks and the prompts that ask for them.

Batch number n is a function of (seed, n), so that a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .model import BOTTOM_RIGHT, FOREGROUND, FRAME, PADDING, TOP_LEFT
from .pool import SHARD, ScenePool
from .scenes import Scene

Mask = NDArray[np.uint8]

MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # SAM's, in 0..255, RGB
DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
LEVEL_CHANCES = (0.42, 0.43, 0.15)  # part, thing, group
LEAST, MOST = 0.007, 0.68  # share of the picture that a target covers
FILLED = 0.01  # holes and specks under this share of the target are not the target's


@dataclass(frozen=True)
class Stage:
    """A stretch of the training at one resolution.

    Attributes:
      side (int): the encoder's input side; a multiple of 16.
      images, prompts (int): pictures in a batch, and prompts on each.
      steps (int): number of batches.
    """

    side: int
    images: int
    prompts: int
    steps: int

    @property
    def boxes(self) -> int:
        """The first prompts of every picture are boxes, the others clicks."""
        return self.prompts * 2 // 5


@dataclass(frozen=True)
class Batch:
    """One step's input; B pictures, P prompts, S the stage's side.

    Attributes:
      pixels (Tensor): Bx3xSxS float32, normalised and zero padded.
      coords (Tensor): BxPx2x2 float32, (X, Y) in the 1024 frame.
      kinds (Tensor): BxPx2 int64, see `Starter.embed_prompts`.
      targets (Tensor): BxPx(S/2)x(S/2) uint8, 255 times the share of each cell that the mask covers.
    """

    pixels: Tensor
    coords: Tensor
    kinds: Tensor
    targets: Tensor


def view(scene: Scene, side: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Mask]:
    """Cuts a random window out of a scene and resizes its longest side to `side`.

    Returns:
      HxWx3 uint8 picture and HxW uint8 part map, max(H, W) == side.
    """
    full = scene.parts.shape[0]
    zoom = 1.0 if rng.random() < 0.35 else float(rng.uniform(0.5, 1))
    ratio = float(rng.choice([1.0, 0.75, 0.667, 0.667, 0.5625]))
    height, width = round(full * zoom), round(full * zoom * ratio)
    new = (side, max(16, round(side * ratio)))
    if rng.random() < 0.65:
        height, width, new = width, height, new[::-1]
    top, left = int(rng.integers(0, full - height + 1)), int(rng.integers(0, full - width + 1))
    window = (slice(top, top + height), slice(left, left + width))
    image, parts = scene.image[window], scene.parts[window]
    if rng.random() < 0.5:
        image, parts = image[:, ::-1], parts[:, ::-1]
    if rng.random() < 0.15:
        image, parts = image[::-1], parts[::-1]
    shrinks = cv2.INTER_AREA if new[0] < height else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(np.ascontiguousarray(image), new[::-1], interpolation=shrinks), np.uint8)
    parts = np.asarray(cv2.resize(np.ascontiguousarray(parts), new[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
    return np.asarray(image, np.uint8), np.asarray(parts, np.uint8)


def recolour(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Changes colours, light and noise of a picture and normalises it; HxWx3 uint8 to float32."""
    if rng.random() < 0.4:
        image = image[..., rng.permutation(3)]
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    gamma = np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.05, 3)).astype(np.float32)
    curve = levels**gamma * np.exp(rng.normal(0, 0.08, 3)).astype(np.float32) + np.float32(rng.normal(0, 0.02))
    if rng.random() < 0.03:
        curve = 1 - curve
    table = (np.clip(curve * 255, 0, 255).astype(np.float32) - MEAN) / DEVIATION
    out = table[image, np.arange(3)]
    if rng.random() < 0.3:
        out += rng.standard_normal(out.shape, np.float32) * np.float32(rng.uniform(0, 0.2))
    return np.asarray(out, np.float32)


def _component(mask: Mask, x: int, y: int) -> Mask:
    """The connected piece of a mask around a pixel, with tiny holes filled."""
    _, labels = cv2.connectedComponents(mask, connectivity=4)
    piece = (labels == labels[y, x]).astype(np.uint8)
    count, holes, stats, _ = cv2.connectedComponentsWithStats(1 - piece, connectivity=4)
    if count > 2:
        small = stats[:, 4] < FILLED * piece.sum()
        small[0] = False
        piece |= small[holes].astype(np.uint8)
    return np.asarray(piece, np.uint8)


def choose_target(scene: Scene, parts: Mask, rng: np.random.Generator) -> Mask | None:
    """Picks a part, a thing or a group in a view; returns an HxW mask or None when the pick is too small or too big."""
    counts = np.bincount(parts.ravel(), minlength=256).astype(np.float64)
    weights = np.where(counts > 0.002 * parts.size, counts**0.4, 0)
    part = int(rng.choice(256, p=weights / weights.sum()))
    row = scene.table[int(rng.choice(len(LEVEL_CHANCES), p=LEVEL_CHANCES))]
    mask = (row == row[part])[parts].astype(np.uint8)
    if rng.random() < 0.9:
        flat = np.flatnonzero(parts == part)
        y, x = divmod(int(flat[rng.integers(len(flat))]), parts.shape[1])
        mask = _component(mask, x, y)
    return mask if LEAST * mask.size < mask.sum() < MOST * mask.size else None


def inner_point(mask: Mask, rng: np.random.Generator) -> tuple[float, float]:
    """A pixel (X, Y) of a mask: its inmost one, or any that lies deep enough."""
    depth = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)[1:-1, 1:-1]
    bound = 0.999 if rng.random() < 0.4 else rng.uniform(0.05, 0.999)
    deep = np.flatnonzero(depth >= bound * depth.max())
    y, x = divmod(int(deep[rng.integers(len(deep))]), mask.shape[1])
    return float(x), float(y)


def jittered_box(mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """The box around a mask, (X0, Y0, X1, Y1) in pixels; exact half of the time, else off by some percent."""
    x, y, width, height = cv2.boundingRect(mask)
    box = np.array([x, y, x + width, y + height], np.float32)
    if rng.random() < 0.5:
        spread = rng.uniform(0.01, 0.08)
        box += (rng.normal(0, spread, 4).clip(-0.15, 0.15) * [width, height, width, height]).astype(np.float32)
    return box.clip(0, max(mask.shape))


def draw_batch(pool: ScenePool, stage: Stage, scenes: int, rng: np.random.Generator) -> Batch:
    """Draws one batch out of the pool's first `scenes` scenes."""
    side, count = stage.side, stage.prompts
    pixels = np.zeros((stage.images, side, side, 3), np.float32)
    targets = np.zeros((stage.images, count, side // 2, side // 2), np.uint8)
    coords = np.zeros((stage.images, count, 2, 2), np.float32)
    for index in range(stage.images):
        masks: list[Mask] = []
        while not masks:
            scene = pool.scene(int(rng.integers(scenes)))
            image, parts = view(scene, side, rng)
            for _ in range(4 * count):
                mask = choose_target(scene, parts, rng)
                if mask is not None:
                    masks.append(mask)
                if len(masks) == count:
                    break
        height, width = parts.shape
        pixels[index, :height, :width] = recolour(image, rng)
        scale = FRAME / side
        for number in range(count):
            mask = masks[number % len(masks)]
            if number < stage.boxes:
                coords[index, number] = jittered_box(mask, rng).reshape(2, 2) * scale
            else:
                coords[index, number, 0] = (np.array(inner_point(mask, rng)) + 0.5) * scale - 0.5
            padded = np.zeros((side, side), np.uint8)
            padded[:height, :width] = mask * 255
            targets[index, number] = cv2.resize(padded, (side // 2, side // 2), interpolation=cv2.INTER_AREA)
    kinds = np.tile(np.array([FOREGROUND, PADDING]), (stage.images, count, 1))
    kinds[:, : stage.boxes] = TOP_LEFT, BOTTOM_RIGHT
    return Batch(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.from_numpy(coords),
        torch.from_numpy(kinds),
        torch.from_numpy(targets),
    )


class Batches(Dataset[Batch]):
    """The batches of one stage; item n is the batch of the run's step n.

    Args:
      folder (Path): the pool's folder.
      stage (Stage): what to draw.
      pool_side (int): side of the pool's scenes in pixels.
      shards (int): shards to use in the end; the run starts on the first and takes in another every `pace` steps.
      seed (int): the run's seed.
    """

    def __init__(
        self, folder: Path, stage: Stage, *, pool_side: int, shards: int, pace: int, seed: int, last: int
    ) -> None:
        self.pool = ScenePool(folder, pool_side, 1)
        self.stage, self.shards, self.pace, self.seed, self.last = stage, shards, pace, seed, last

    def __len__(self) -> int:
        return self.last

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        scenes = SHARD * min(self.shards, 1 + step // self.pace)
        return draw_batch(self.pool, self.stage, scenes, np.random.default_rng((self.seed, step)))
