"""The GPU's benchmark, tried out without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench.plain_sam import PlainMaskDecoder, PlainViT, fill
from encoder_service.variants import VitVariant
from sam.modeling import build_mask_decoder, build_prompt_encoder, upstream_modeling

ROOT = Path(__file__).resolve().parents[2]

# Ours, and what is installed where it has to run, with what that needs in turn.
ALLOWED = (
    *("bench", "encoder_service", "sam", "torch", "torchgen", "triton", "numpy", "PIL", "grpc", "google"),
    *("typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "setuptools"),
    *("sitecustomize", "distutils", "_distutils_hack", "yaml", "psutil", "cuda", "nvidia"),
)

HOOK = f"""
import sys
from importlib.machinery import PathFinder

class Bare:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        known = first in sys.stdlib_module_names or first.startswith("_sysconfigdata") or first in {ALLOWED!r}
        return PathFinder.find_spec(name, path, target) if known else None

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare()
"""


def test_the_eager_peer_is_upstream() -> None:
    """The image encoder that stands in for upstream's takes its weights and computes what it computes."""
    variant = VitVariant(embed_dim=32, depth=2, heads=2, global_attn_indexes=(1,))
    peer = PlainViT(variant, side=5, window=3)
    fill(peer)
    upstream = upstream_modeling().ImageEncoderViT(
        depth=2,
        embed_dim=32,
        img_size=80,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=2,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=3,
    )
    upstream.load_state_dict(peer.state_dict())
    frames = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = peer(frames), upstream(frames)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_mask_decoder_is_upstream() -> None:
    """The decoder that compares embeddings by their masks gives the three masks that upstream's gives for a point."""
    peer = PlainMaskDecoder()
    fill(peer, seed=1)
    prompts, decoder = build_prompt_encoder(), build_mask_decoder()
    prompts.load_state_dict(peer.prompts.state_dict(), strict=False)
    missing = decoder.load_state_dict(peer.decoder.state_dict(), strict=False)
    # What it leaves out estimates quality.
    assert all(name.startswith(("iou_prediction_head",)) for name in missing.missing_keys)
    assert not missing.unexpected_keys
    generator = torch.Generator().manual_seed(2)
    embedding, points = torch.randn(1, 256, 64, 64, generator=generator), torch.rand(2, 2, generator=generator) * 1024
    with torch.inference_mode():
        sparse, dense = prompts(points=(points[:, None], torch.ones(2, 1)), boxes=None, masks=None)
        expected, _ = decoder.predict_masks(embedding, prompts.get_dense_pe(), sparse, dense)
        found = peer(embedding, points)
    assert (found - expected[:, 1:]).norm() <= 1e-4 * expected[:, 1:].norm()


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed; it exists for Linux on x86-64")
def test_it_runs_with_a_handful_of_packages(tmp_path: Path) -> None:
    """Every stage runs where torch, Triton, numpy, pillow, grpcio and protobuf are all there is, and tells its figures;
    a stage that fails costs its own rows only."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    stages = ("core none", "all tiny", "first tiny cold")
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick", "--json"]
    done = subprocess.run(
        [*command, *(part for stage in stages for part in ("--stage", stage))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OUT": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    failed = [row for row in rows if "error" in row]
    assert [row["stage"] for row in failed] == ["core none"], done.stderr[-4000:]
    figures = {row["row"]: row["value"] for row in rows if "value" in row}
    assert figures["relative error of embeddings to float32"] <= 3e-3
    assert figures["mean IoU of masks to float32, random decoder"] >= 0.99
    assert figures["first answer after weights are read, compile cache cold"] > 0
    assert any(name.startswith("JPEG") for name in figures)
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == rows
