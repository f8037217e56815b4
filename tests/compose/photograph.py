"""Segments a photograph in the containers, and holds the answers to those of a server without containers."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import requests
from PIL import Image
from pycocotools import mask as coco

from tests.conftest import free_port
from tests.integration.processes import Process, spawn
from tests.photographs import photograph

MODEL = {"SAMOVAR_MODEL": "starter"}
"""The smallest model, and a trained one: masks of random weights hang on the last bit of a number."""

_START_S = 300.0
_PROMPT = {"point_coords": [[330, 180], [20, 400]], "point_labels": [1, 0]}


def check_photograph(url: str, folder: Path) -> str:
    """Segment a photograph at a gateway, sent and then named, and compare with a server of this process's own.

    Args:
        url: the gateway in the containers, serving `MODEL`.
        folder: for the other server's log.

    Returns:
        What was seen, for the table.

    Raises:
        AssertionError: an answer is not as it must be; the text says which field.
    """
    file = photograph("china")
    sent = {"image": {"type": "base64", "value": base64.b64encode(file.read_bytes()).decode()}, "image_id": "china"}
    with Image.open(file) as picture:
        width, height = picture.size

    first, headers = _segment(url, {**sent, **_PROMPT, "format": "rle"})
    assert headers["X-Cache"] == "miss", headers["X-Cache"]
    assert headers["X-Image-Digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert first["image_id"] == "china", first["image_id"]
    assert first["original_size"] == [height, width], first["original_size"]
    assert first["masks"][0]["size"] == [height, width], first["masks"][0]["size"]
    assert len(first["masks"]) == len(first["scores"]) == 1, (len(first["masks"]), first["scores"])
    assert math.isfinite(first["scores"][0]), first["scores"]
    mask = coco.decode(first["masks"][0]).astype(bool)

    # By name alone, as another form of the same mask.
    second, headers = _segment(url, {"image_id": "china", **_PROMPT, "format": "png"})
    assert headers["X-Cache"] == "hit", headers["X-Cache"]
    assert np.array_equal(_from_png(second["masks"][0]), mask), "sent and named, the photograph has two masks"

    expected, score = _without_containers(sent, folder)
    agreement = float((mask == expected).mean())
    assert agreement >= 0.99, f"{agreement:.4f} of the pixels are those of a server without containers"
    assert abs(score - first["scores"][0]) < 0.02, (score, first["scores"][0])
    assert 0 < mask.mean() < 1, "the mask is empty or full, which compares nothing"
    return f"200, every field right; {100 * agreement:.1f} % of the mask's pixels agree"


def _segment(url: str, body: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    response = requests.post(f"{url}/sam/segment_image", json=body, timeout=120)
    assert response.status_code == 200, f"{response.status_code}: {response.text[:300]}"
    answer: dict[str, Any] = response.json()
    return answer, response.headers


def _from_png(text: str) -> npt.NDArray[np.bool_]:
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture.convert("L")) > 0


def _without_containers(sent: dict[str, Any], folder: Path) -> tuple[npt.NDArray[np.bool_], float]:
    port = free_port()
    process = spawn(["-m", "samovar", "serve", "--port", str(port)], folder, port, MODEL)
    try:
        _wait_until_ready(process)
        answer, _ = _segment(process.url, {**sent, **_PROMPT, "format": "rle"})
    finally:
        process.stop()
    return coco.decode(answer["masks"][0]).astype(bool), float(answer["scores"][0])


def _wait_until_ready(process: Process) -> None:
    # Beside five containers it starts more slowly than the tests of its own allow for.
    until = time.monotonic() + _START_S
    while process.popen.poll() is None and time.monotonic() < until:
        try:
            if requests.get(f"{process.url}/readiness", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server without containers did not become ready:\n{process.log.read_text()[-4000:]}")
