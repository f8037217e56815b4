"""A server as one would write it in an afternoon, to compare with: `python -m bench.reference_server FEATURES PORT`.

Meta's ONNX export of the prompt encoder and mask decoder in ONNX Runtime, one lock around it, FastAPI, masks scaled to
the picture by the export and outlined by OpenCV: how the servers that people run today are built. Its weights are those
of the starter, its one picture that whose embedding is in FEATURES, an `.npy` file beside whose name its size stands.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import orjson
import torch
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from bench.decoder import export_to_onnx
from sam.checkpoints import find_checkpoint
from sam.cpu import available_cores
from sam.geometry import Size, points_to_input_frame
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.settings import ModelSettings
from tests.upstream import upstream_sam


class Click(BaseModel):
    """The part of the request that a click uses."""

    image_id: str
    point_coords: list[list[float]]
    point_labels: list[int]


class Decoder:
    """One picture's clicks, one at a time.

    Args:
        features: its embedding, float32 1x256x64x64.
        size: of the picture, in pixels.
    """

    def __init__(self, features: npt.NDArray[np.float32], size: Size) -> None:
        prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
        checkpoint = find_checkpoint(ModelSettings(model="starter"))
        checkpoint.load_into(prompt_encoder, "prompt_encoder")
        checkpoint.load_into(mask_decoder, "mask_decoder")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = export_to_onnx(upstream_sam(prompt_encoder, mask_decoder), Path(folder))
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._features, self._size = features, size
        self._lock = threading.Lock()

    def segment(self, click: Click) -> dict[str, Any]:
        """Return the best mask's polygons, at the picture's size and at 256x256."""
        coords = points_to_input_frame(np.array(click.point_coords), self._size)
        inputs = {
            "image_embeddings": self._features,
            "point_coords": np.concatenate([coords, [[0.0, 0.0]]])[None].astype(np.float32),
            "point_labels": np.array([[*click.point_labels, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(self._size, np.float32),
        }
        with self._lock:
            masks, scores, low_res = self._session.run(None, inputs)
        return {
            "masks": _polygons(masks[0, 0] > 0),
            "low_res_masks": _polygons(low_res[0, 0] > 0),
            "scores": scores[0].tolist(),
        }


def _polygons(mask: npt.NDArray[np.bool_]) -> list[Any]:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return [outline[:, 0].tolist() for outline in outlines]


def build_app(decoder: Decoder) -> FastAPI:
    """Return the application."""
    app = FastAPI()

    @app.post("/sam/segment_image")
    def segment_image(click: Click) -> Response:
        return Response(orjson.dumps(decoder.segment(click)), media_type="application/json")

    return app


def main() -> None:
    """Serve until stopped."""
    path, port = Path(sys.argv[1]), int(sys.argv[2])
    height, width = map(int, path.stem.split("x"))
    features = np.load(path).astype(np.float32)
    uvicorn.run(build_app(Decoder(features, Size(height, width))), port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
