"""Scenes kept on disk in shards, because drawing one costs more than training on it.

A shard is a function of (seed, side, number) alone: whoever misses one draws it, so several machines or a restarted run
see the same pictures. `python -m starter.pool` draws shards ahead of the training.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import cv2
import numpy as np

from .scenes import LEVELS, Scene, draw_scene
from .textures import texture_bank

SHARD = 250  # scenes a shard: about 20 s of one core at 256 pixels
TILES = 160  # surfaces a shard: about 5 s


def shard_path(folder: Path, side: int, number: int, seed: int) -> Path:
    """Names the file of one shard."""
    return folder / f"scenes-{seed}-{side}-{number:04d}.npz"


def draw_shard(folder: Path, side: int, number: int, seed: int) -> Path:
    """Draws a shard unless it is there; the file appears whole or not at all."""
    path = shard_path(folder, side, number, seed)
    if path.exists():
        return path
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, side, number))
    bank = texture_bank(TILES, int(rng.integers(2**31)))
    images = np.empty((SHARD, side, side, 3), np.uint8)
    parts = np.empty((SHARD, side, side), np.uint8)
    tables = np.empty((SHARD, LEVELS, 256), np.uint8)
    for index in range(SHARD):
        scene = draw_scene(side, bank, rng)
        images[index], parts[index], tables[index] = scene.image, scene.parts, scene.table
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, images=images, parts=parts, tables=tables)
    partial.replace(path)
    return path


class ScenePool:
    """Random access to the scenes of one side length; shards are read (or drawn) once and stay in memory.

    Args:
      folder (Path): where shards lie.
      side (int): picture side in pixels.
      seed (int): seed of the scenes.
    """

    def __init__(self, folder: Path, side: int, seed: int) -> None:
        self.folder, self.side, self.seed = folder, side, seed
        self._shards: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def scene(self, number: int) -> Scene:
        """Returns scene `number` of the endless sequence."""
        shard, index = divmod(number, SHARD)
        if shard not in self._shards:
            with np.load(draw_shard(self.folder, self.side, shard, self.seed)) as file:
                self._shards[shard] = (file["images"], file["parts"], file["tables"])
        images, parts, tables = self._shards[shard]
        return Scene(images[index], parts[index], tables[index])


def main() -> None:
    """Draws shards ahead of a run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for number in range(options.first, options.shards):
        draw_shard(options.folder, options.side, number, options.seed)
        print(f"shard {number} of {options.shards}", flush=True)


if __name__ == "__main__":
    main()
