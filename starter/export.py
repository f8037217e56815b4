"""`python -m starter.export RUN OUT`: writes a run's averaged weights as a checkpoint in SAM's format.

float16 safetensors, with the keys of a SAM checkpoint (`image_encoder.`, `prompt_encoder.`, `mask_decoder.`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .model import Starter

RECIPE = "1"  # goes up whenever scenes, network or losses change
LIMIT = 16 * 2**20  # bytes; what the package may carry


def weights_of(state: Path) -> dict[str, Tensor]:
    """Reads the averaged weights out of a run's `state.pt`, with the fixed frequencies; float16, contiguous."""
    saved = torch.load(state, map_location="cpu", weights_only=True, mmap=True)
    model = Starter()
    tensors = model.state_dict()
    known = {**saved["average"], "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": saved["frequencies"]}
    model.load_state_dict({name: known[name] for name in tensors})
    return {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}


def export(state: Path, out: Path) -> None:
    """Writes the checkpoint, whole or not at all.

    Raises:
      ValueError: the file would be too large, or a weight does not fit float16.
    """
    tensors = weights_of(state)
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"weights beyond the range of float16: {', '.join(broken)}")
    partial = out.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt", "name": "starter", "recipe": RECIPE})
    if partial.stat().st_size > LIMIT:
        size = partial.stat().st_size
        partial.unlink()
        raise ValueError(f"the checkpoint takes {size} bytes, more than {LIMIT}")
    partial.replace(out)


def main() -> None:
    """Writes a run's averaged weights as a checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="the folder given to python -m starter.train")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    export(options.run / "state.pt", options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
