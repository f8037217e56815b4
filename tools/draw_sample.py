"""Draw the demo page's sample picture, a tea table, from nothing: `python -m tools.draw_sample`.

Everything on the table is a solid of revolution, shaded by its normals. Drawn at twice its size and then reduced.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

SAMPLE = Path(__file__).resolve().parent.parent / "gateway" / "demo" / "sample.jpg"
WIDTH, HEIGHT = 1200, 800
SCALE = 2

Array = npt.NDArray[np.float64]
Profile = Sequence[tuple[float, float]]
"""Heights above the ground and radii there, in pixels of the finished picture."""
Material = Callable[[Array, Array, Array], Array]
"""From unit normals (x to the right, y up, z to the viewer), each of one shape, to RGB of that shape x3, 0 to 1."""

_LIGHT = np.array([-0.55, 0.62, 0.56])
_FLATNESS = 0.26
"""How high the ellipses are for their width, for a camera that looks down a little."""


def matt(colour: str, gloss: float = 0.25, sharpness: float = 24) -> Material:
    """Glazed clay, fruit, wood: diffuse light and one highlight."""
    base = _rgb(colour)

    def shade(nx: Array, ny: Array, nz: Array) -> Array:
        diffuse: Array = np.clip(nx * _LIGHT[0] + ny * _LIGHT[1] + nz * _LIGHT[2], 0, 1)
        half = _LIGHT + np.array([0, 0, 1])
        half /= np.linalg.norm(half)
        highlight: Array = gloss * np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1) ** sharpness
        # The table throws its own warm light back from below.
        bounce = 0.14 * np.clip(-ny, 0, 1)[..., None] * np.array([1.0, 0.8, 0.6])
        lit: Array = base * (0.34 + 0.72 * diffuse)[..., None] + highlight[..., None] + base * bounce
        return lit

    return shade


def metal(colour: str) -> Material:
    """Polished brass: what it mirrors is a bright window on the left, a dim room, and the table."""
    base = _rgb(colour)

    def shade(nx: Array, ny: Array, nz: Array) -> Array:
        window = np.exp(-(((nx + 0.52) / 0.13) ** 2)) * (0.55 + 0.45 * np.clip(ny + 0.7, 0, 1))
        strip = 0.5 * np.exp(-(((nx - 0.72) / 0.06) ** 2))
        room = 0.42 + 0.3 * nz**2 - 0.25 * np.exp(-(((nx - 0.28) / 0.2) ** 2))
        table = 0.25 * np.clip(-ny, 0, 1)
        light = room + 0.25 * ny + table
        shine: Array = base * light[..., None] + (window + strip)[..., None] * np.array([1.0, 0.95, 0.8]) * 0.75
        return shine

    return shade


class Canvas:
    """A picture being painted: RGB, float64, 0 to 1."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.pixels: Array = np.zeros((HEIGHT * SCALE, WIDTH * SCALE, 3))
        self.random = np.random.default_rng(9001)

    def noise(self, across: int, down: int) -> Array:
        """Return smooth noise around 0, of so many bumps across and down."""
        grid = self.random.normal(size=(down, across)).astype(np.float32)
        image = Image.fromarray(grid).resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.BICUBIC)
        return np.asarray(image, np.float64)

    def cover(self, alpha: Array, colour: Array) -> None:
        """Paint over everything, by HxW alpha."""
        self.pixels += alpha[..., None] * (colour - self.pixels)

    def shadow(self, x: float, y: float, across: float, down: float, strength: float) -> None:
        """Darken the table around a place, softly."""
        # At twice its size there is nothing left of it.
        top, bottom = max(0, int((y - 2 * down) * SCALE)), min(HEIGHT * SCALE, int((y + 2 * down) * SCALE))
        left, right = max(0, int((x - 2 * across) * SCALE)), min(WIDTH * SCALE, int((x + 2 * across) * SCALE))
        rows, columns = np.mgrid[top:bottom, left:right] / SCALE
        distance = ((columns - x) / across) ** 2 + ((rows - y) / down) ** 2
        self.pixels[top:bottom, left:right] *= (1 - strength * np.exp(-(distance**1.4)))[..., None]

    def turn(self, x: float, ground: float, profile: Profile, material: Material) -> None:
        """Stand a solid of revolution on the ground, ellipse upon ellipse."""
        heights, radii, slopes = _sampled(profile)
        for height, radius, slope in zip(heights, radii, slopes, strict=True):
            if radius > 0:
                self._ellipse(x, ground - height, radius, partial(_lathe, slope=slope, material=material))

    def disc(self, x: float, y: float, radius: float, material: Material) -> None:
        """Lay a level disc: a table-top of a thing, or tea in a cup."""
        up = lambda side: material(np.zeros_like(side), np.full_like(side, 0.96), np.full_like(side, 0.28))  # noqa: E731
        self._ellipse(x, y, radius, up)

    def hollow(self, x: float, y: float, radius: float, material: Material) -> None:
        """Look into a vessel: its inner wall, lit where the outer one is not."""
        self._ellipse(x, y, radius, lambda side: 0.8 * _lathe(-side, 0.25, material))

    def _ellipse(self, x: float, y: float, radius: float, colour_of: Callable[[Array], Array]) -> None:
        low = _FLATNESS * radius
        top, bottom = int((y - low) * SCALE) - 1, int((y + low) * SCALE) + 3
        left, right = int((x - radius) * SCALE) - 1, int((x + radius) * SCALE) + 3
        side = (np.arange(left, right) / SCALE - x) / radius
        depth = (np.arange(top, bottom) / SCALE - y) / low
        inside = side**2 + depth[:, None] ** 2 <= 1
        # What is behind the front rim is covered by the next ellipse, so that a colour for each column will do.
        colours = np.clip(colour_of(np.clip(side, -1, 1)), 0, 1)
        view = self.pixels[top:bottom, left:right]
        view[inside] = np.broadcast_to(colours, view.shape)[inside]

    def lie(self, x: float, y: float, turned: float, profile: Profile, material: Material, bumps: float = 0) -> None:
        """Lay a solid of revolution down: `turned` degrees from upright, seen from the side."""
        heights, radii, slopes = _sampled(profile)
        reach = max(heights[-1], max(radii)) + 4
        top, left = int((y - reach) * SCALE), int((x - reach) * SCALE)
        size = int(2 * reach * SCALE)
        rows, columns = np.mgrid[top : top + size, left : left + size] / SCALE
        angle = np.radians(turned)
        along = (columns - x) * np.sin(angle) - (rows - y) * np.cos(angle) + heights[-1] / 2
        across = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        radius = np.interp(along, heights, radii, 0, 0)
        inside = (np.abs(across) < radius) & (radius > 0)
        side, slope = across[inside] / radius[inside], np.interp(along[inside], heights, slopes)
        length = np.sqrt(1 + slope**2)
        n_across, n_along, nz = side / length, -slope / length, np.sqrt(1 - side**2) / length
        if bumps:
            n_across = n_across + self.random.normal(0, bumps, n_across.shape)
        nx = n_across * np.cos(angle) + n_along * np.sin(angle)
        ny = -n_across * np.sin(angle) + n_along * np.cos(angle)
        self.pixels[top : top + size, left : left + size][inside] = np.clip(material(nx, ny, nz), 0, 1)

    def tube(self, points: Sequence[tuple[float, float]], radius: float, material: Material) -> None:
        """Bend a tube along a smooth line through points: handles and spouts."""
        line = _smooth(points, 260)
        for x, y in line:
            size = radius + 1
            top, left = int((y - size) * SCALE), int((x - size) * SCALE)
            extent = int(2 * size * SCALE) + 2
            rows, columns = np.mgrid[top : top + extent, left : left + extent] / SCALE
            nx, ny = (columns - x) / radius, -(rows - y) / radius
            inside = nx**2 + ny**2 <= 1
            nz = np.sqrt(1 - nx[inside] ** 2 - ny[inside] ** 2)
            view = self.pixels[top : top + extent, left : left + extent]
            view[inside] = np.clip(material(nx[inside], ny[inside], nz), 0, 1)

    def finished(self) -> Image.Image:
        """Reduce it, with the grain of a photograph."""
        image = Image.fromarray((np.clip(self.pixels, 0, 1) * 255).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur(0.7)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        grain = self.random.normal(0, 1.6, (HEIGHT, WIDTH, 1))
        return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def draw() -> Image.Image:
    """Draw the tea table, 1200x800 RGB."""
    canvas = Canvas()
    _room(canvas)
    _samovar(canvas, 400, 640)
    _teapot(canvas, 730, 600)
    _fruit(canvas)
    _cup(canvas, 900, 705)
    return canvas.finished()


def _room(canvas: Canvas) -> None:
    rows, columns = np.mgrid[0 : HEIGHT * SCALE, 0 : WIDTH * SCALE] / SCALE
    wall = _rgb("#5d7a7c") * (1.12 - 0.55 * (columns / WIDTH) - 0.12 * (rows / HEIGHT))[..., None]
    wall *= (1 + 0.025 * canvas.noise(24, 16) + 0.012 * canvas.noise(200, 140))[..., None]
    table = _rgb("#a9703f") * (1.2 - 0.5 * (columns / WIDTH))[..., None]
    grain = 0.07 * canvas.noise(5, 150) + 0.05 * canvas.noise(12, 420)
    plank = 1 - 0.3 * (np.abs(np.mod((rows - 470) * 1.0, 118) - 2) < 1.6)
    table *= ((1 + grain) * plank * (0.72 + 0.4 * (rows - 460) / 340))[..., None]
    edge = np.clip((rows - 468) * 1.2, 0, 1)
    canvas.pixels[:] = wall
    canvas.cover(edge, table)
    canvas.pixels *= (1 - 0.35 * np.exp(-(((rows - 468) / 26) ** 2)) * (rows > 468))[..., None]


def _samovar(canvas: Canvas, x: float, ground: float) -> None:
    brass = metal("#d9a441")
    canvas.shadow(x + 95, ground + 2, 235, 52, 0.62)
    for side in (-1, 1):
        handle = [(x + side * 112, ground - 330), (x + side * 172, ground - 322), (x + side * 168, ground - 262)]
        canvas.tube([*handle, (x + side * 118, ground - 250)], 8.5, matt("#3b2314", 0.5))
    foot = [(0, 92), (14, 96), (22, 82), (46, 46), (74, 36), (92, 40), (112, 62)]
    body = [(142, 88), (200, 112), (270, 124), (330, 116), (366, 94), (384, 74), (392, 78), (402, 76)]
    canvas.turn(x, ground, [*foot, *body, (412, 60), (436, 42), (456, 36), (470, 44), (478, 46)], brass)
    canvas.turn(x, ground - 478, [(0, 46), (8, 46), (14, 38), (44, 30), (52, 34), (60, 33)], brass)
    canvas.hollow(x, ground - 538, 28, matt("#5a4630", 0.1))
    canvas.tube([(x + 8, ground - 196), (x + 10, ground - 170), (x + 12, ground - 148)], 14, brass)
    canvas.tube([(x + 12, ground - 150), (x + 13, ground - 118)], 9, brass)
    canvas.tube([(x - 24, ground - 204), (x + 10, ground - 214), (x + 44, ground - 204)], 6, matt("#3b2314", 0.5))


def _teapot(canvas: Canvas, x: float, ground: float) -> None:
    glaze = matt("#2f5f9e", 0.7, 40)
    canvas.shadow(x + 70, ground + 4, 165, 40, 0.6)
    canvas.tube(
        [(x + 84, ground - 130), (x + 152, ground - 134), (x + 150, ground - 66), (x + 88, ground - 44)], 9, glaze
    )
    canvas.tube(
        [(x - 82, ground - 58), (x - 122, ground - 82), (x - 134, ground - 128), (x - 160, ground - 146)], 12, glaze
    )
    pot = [(0, 58), (8, 64), (40, 96), (84, 108), (126, 92), (154, 60), (160, 54)]
    canvas.turn(x, ground, pot, glaze)
    canvas.turn(x, ground - 158, [(0, 58), (5, 60), (18, 46), (28, 22), (32, 9), (38, 8)], matt("#e9e2d2", 0.5))
    canvas.turn(x, ground - 192, [(0, 5), (6, 12), (16, 15), (26, 11), (31, 3)], matt("#e9e2d2", 0.5))


def _fruit(canvas: Canvas) -> None:
    lemon = [(0, 5), (8, 12), (22, 34), (56, 48), (88, 38), (104, 16), (114, 7), (119, 2)]
    canvas.shadow(640, 694, 92, 25, 0.6)
    canvas.lie(604, 662, 68, lemon, matt("#efc22b", 0.4, 30), 0.045)
    apple = [(0, 18), (6, 34), (30, 58), (62, 66), (90, 54), (106, 28), (108, 12), (104, 4)]
    canvas.shadow(200, 716, 95, 25, 0.6)
    canvas.turn(160, 704, apple[:-1], matt("#b8302a", 0.55, 34))
    canvas.tube([(160, 598), (164, 584), (174, 572)], 3.4, matt("#4a3320", 0.1))
    canvas.shadow(1100, 610, 85, 22, 0.6)
    canvas.turn(1066, 602, apple[:-1], matt("#86a83a", 0.5, 34))
    canvas.tube([(1066, 496), (1063, 482), (1054, 472)], 3.2, matt("#4a3320", 0.1))


def _cup(canvas: Canvas, x: float, ground: float) -> None:
    china = matt("#f1ece2", 0.35, 30)
    canvas.shadow(x + 36, ground + 10, 190, 50, 0.55)
    canvas.turn(x, ground, [(0, 66), (6, 74), (12, 118), (19, 148), (22, 150)], china)
    canvas.disc(x, ground - 22, 146, matt("#e8e1d3", 0.1))
    canvas.disc(x, ground - 20, 96, matt("#d8cfbf", 0.1))
    canvas.tube(
        [(x + 70, ground - 92), (x + 122, ground - 98), (x + 114, ground - 56), (x + 62, ground - 44)], 7, china
    )
    canvas.turn(x, ground - 16, [(0, 34), (8, 40), (26, 62), (58, 80), (96, 88), (100, 88)], china)
    canvas.hollow(x, ground - 116, 84, china)
    canvas.disc(x, ground - 109, 77, matt("#8a3d12", 0.15))


def _lathe(side: Array, slope: float, material: Material) -> Array:
    """Shade the front of an ellipse, `side` being -1 at its left end and 1 at its right."""
    length = np.sqrt(1 + slope**2)
    return material(side / length, np.full_like(side, -slope / length), np.sqrt(1 - side**2) / length)


def _sampled(profile: Profile) -> tuple[Array, Array, Array]:
    """Return heights half a pixel apart, with the radius and its slope at each."""
    line = _smooth(profile, 4000)
    heights = np.arange(line[0, 0], line[:, 0].max(), 0.5)
    radii = np.interp(heights, np.maximum.accumulate(line[:, 0]), line[:, 1])
    return heights, radii, np.gradient(radii, heights)


def _smooth(points: Profile, count: int) -> Array:
    """Return `count` points on a Catmull-Rom curve through `points`, Nx2."""
    given = np.array(points, np.float64)
    padded = np.concatenate([2 * given[:1] - given[1:2], given, 2 * given[-1:] - given[-2:-1]])
    place = np.linspace(0, len(given) - 1, count)
    at = np.minimum(place.astype(int), len(given) - 2)
    t = (place - at)[:, None]
    a, b, c, d = (padded[at + step] for step in range(4))
    curve: Array = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve


def _rgb(colour: str) -> Array:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255


def encoded(image: Image.Image) -> bytes:
    """Return the picture as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=86, optimize=True, progressive=True)
    return file.getvalue()


if __name__ == "__main__":
    SAMPLE.write_bytes(encoded(draw()))
