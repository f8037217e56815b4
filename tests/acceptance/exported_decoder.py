"""The mask decoder as upstream's own exporter writes it for browsers."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

from sam.checkpoints import find_checkpoint
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.settings import ModelSettings
from tests.upstream import upstream_package


class _DecodingHalf(torch.nn.Module):
    """What the exporter looks at of a whole model."""

    mask_threshold = 0.0

    def __init__(self, prompt_encoder: torch.nn.Module, mask_decoder: torch.nn.Module) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.image_encoder = SimpleNamespace(img_size=1024)


def export_decoder(settings: ModelSettings, path: Path) -> None:
    """Write the decoding half of a checkpoint as ONNX, with the inputs and outputs of upstream's script."""
    checkpoint = find_checkpoint(settings)
    prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
    checkpoint.load_into(prompt_encoder, "prompt_encoder")
    checkpoint.load_into(mask_decoder, "mask_decoder")
    package = upstream_package()
    exporter = importlib.import_module(f"{package.__name__}.utils.onnx")
    model = exporter.SamOnnxModel(_DecodingHalf(prompt_encoder, mask_decoder), return_single_mask=True)
    inputs = {
        "image_embeddings": torch.zeros(1, 256, 64, 64),
        "point_coords": torch.zeros(1, 2, 2),
        "point_labels": torch.ones(1, 2),
        "mask_input": torch.zeros(1, 1, 256, 256),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([400.0, 640.0]),
    }
    with warnings.catch_warnings():
        # Of a tracer whose constants are constants.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            str(path),
            opset_version=17,
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
            dynamo=False,
        )
