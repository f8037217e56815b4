"""JavaScript: SAM's web demo path, and the gRPC example."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from sam.settings import ModelSettings
from samovar.client import SamClient
from tests.acceptance.conftest import ROOT, installed, program
from tests.acceptance.exported_decoder import export_decoder
from tests.integration.processes import RANDOM_MODEL, Process
from tests.photographs import photograph

HEIGHT, WIDTH = 400, 640
CLICK = (380, 350)


def node(script: Path, set_name: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script beside its packages."""
    placed = shutil.copy(script, installed(set_name))
    command = [program("node"), str(placed), *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def test_a_browser_decodes_our_embedding_to_the_same_mask(server: Process, tmp_path: Path) -> None:
    """npyjs loads our .npy, onnxruntime-web runs upstream's exported decoder on it, and the mask is ours."""
    # 640 x 400 becomes 1024 x 640 exactly: the web demo scales both axes alike, where SamPredictor rounds each.
    pixels = np.asarray(Image.open(photograph()).convert("RGB"))[:HEIGHT, :WIDTH]
    onnx, mask_file = tmp_path / "decoder.onnx", tmp_path / "mask.bin"
    model, checkpoint = RANDOM_MODEL["SAMOVAR_MODEL"], RANDOM_MODEL["SAMOVAR_CHECKPOINT"]
    export_decoder(ModelSettings(model=model, checkpoint=checkpoint), onnx)
    with SamClient(server.url) as client:
        picture = client.embed(np.ascontiguousarray(pixels), "for the browser")
        ours = client.segment(picture, point_coords=[CLICK])
    address = f"{server.url}/sam/embeddings/for%20the%20browser.npy"
    script = Path(__file__).parent / "browser_decoder" / "decode.mjs"
    done = node(script, "browser_decoder", address, onnx, str(HEIGHT), str(WIDTH), *map(str, CLICK), mask_file)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["shape"] == [1, 1, HEIGHT, WIDTH]
    assert abs(answer["score"] - float(ours.scores[0])) < 1e-3
    theirs = np.frombuffer(mask_file.read_bytes(), np.uint8).reshape(HEIGHT, WIDTH) == 1
    assert 0.01 < theirs.mean() < 0.99
    # Two libraries add the same numbers in other orders: pixels at the very threshold may differ.
    assert (theirs != ours.best).mean() < 1e-3


def test_the_grpc_example(server: Process, photo: Path) -> None:
    """examples/node segments a picture over gRPC, and says what is wrong with one that is none."""
    script = ROOT / "examples" / "node" / "segment.mjs"
    places = {
        "PROTOS": str(ROOT / "protos"),
        "ENCODER": f"127.0.0.1:{server.port + 1}",
        "DECODER": f"127.0.0.1:{server.port + 2}",
    }
    done = node(script, "node", photo, "380", "350", **places)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("640 x 427 pixels, model starter\nscore ")
    done = node(script, "node", __file__, "380", "350", **places)
    assert done.returncode == 1
    assert done.stderr.startswith("INVALID_ARGUMENT: Could not load input image")
    assert node(script, "node", photo, **places).returncode == 2
