"""A process that compiles the kernels for an H200 without one, into the empty folder that `TRITON_CACHE_DIR` names.

Triton is given a driver that says it is an H200 and launches nothing, so that the engine's own calls compile what they
would compile there, down to machine code. Prints a JSON list of what was compiled.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from encoder_service.gpu import operations
from encoder_service.gpu.operations import GLOBAL_TILE, WINDOW_TILE, Grid
from encoder_service.variants import VIT_VARIANTS

SHARED_MEMORY = 232_448
"""Bytes that a block may have on an H200."""

TOKENS = 64 * 64
HALF = torch.float16
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class _H200(DriverBase):  # type: ignore[misc]
    """What Triton asks a driver about a GPU."""

    def __init__(self) -> None:
        self.utils = self

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return (1, 1, 0, 0, 1024)

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: None


def attention(heads: int, channels: int) -> None:
    """Attend as a network with so many heads and channels does, over pictures and within windows."""
    width = channels // heads
    qkv = torch.empty(TOKENS + 1, 3 * channels, dtype=HALF)
    attended = torch.empty(TOKENS, channels, dtype=HALF)
    for window, tile in ((0, GLOBAL_TILE), (14, WINDOW_TILE)):
        grid = Grid(64, window, heads, width)
        tables = torch.empty(2, 2 * (window or 64) - 1, width, dtype=HALF)
        bias = torch.empty(grid.bias_numbers(1), dtype=HALF)
        operations.attend(qkv, tables, bias, attended, 1, grid, tile=tile, outside=TOKENS)


def others(channels: int) -> None:
    """Call what else there is."""
    tokens, weight = torch.empty(TOKENS, channels, dtype=HALF), torch.empty(channels)
    operations.norm(tokens, weight, weight, 1e-6, tokens, weight)
    narrow, weight = torch.empty(TOKENS, 256, dtype=HALF), torch.empty(256)
    operations.norm(narrow, weight, weight, 1e-6, narrow)
    operations.embeddings(narrow, weight, weight, 1e-6, 1)
    places = torch.tensor([[0, 1024, 1024]], dtype=torch.int32)
    operations.patches(torch.empty(3 * 2**20, dtype=torch.uint8), places, torch.empty(TOKENS, 768, dtype=HALF), 1024)


def described(binary: Path) -> dict[str, Any]:
    """Return what was made of a kernel."""
    used = subprocess.check_output([_CUOBJDUMP, "--dump-resource-usage", binary], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found is not None
    code = binary.with_suffix(".ptx").read_text()
    metadata = json.loads(binary.with_suffix(".json").read_text())
    return {
        "name": binary.stem,
        "registers": int(found[1]),
        "stack": int(found[2]),
        "warps": metadata["num_warps"],
        "shared": metadata["shared"],
        "hopper products": code.count("wgmma.mma_async"),
        "other products": code.count("mma.sync"),
        "wide copies": code.count("cp.async.cg.shared.global"),
    }


if __name__ == "__main__":
    driver.set_active(_H200())
    variant = VIT_VARIANTS["vit_h"]
    attention(variant.heads, variant.embed_dim)
    others(variant.embed_dim)
    print(json.dumps([described(binary) for binary in sorted(Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))]))
