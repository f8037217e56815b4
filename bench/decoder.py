"""One click and many, against what one would use instead: `python -m bench.decoder [--json]`.

Every peer is measured in the same run, in turn with ours, on the same weights, cores and prompts; the figures are
medians. Ours runs as the decoder service runs it: the fast engine, the precision that suits the CPU, one team of
threads. Peers are development dependencies: one that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from decoder_service.mask_encoding import encode_rle
from decoder_service.masks import threshold_at_original_size
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from decoder_service.team import Team, solo_executor
from sam.compiled.library import Library
from sam.cpu import available_cores
from sam.geometry import Size, input_size, points_to_input_frame
from tests.decoder_service.networks import seeded_features, seeded_networks
from tests.upstream import upstream_package, upstream_predictor, upstream_sam

SIZE = Size(1200, 1800)
POINT = np.array([[700.0, 500.0]])
LABEL = np.array([1])
_EXPORT_INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")

Run = Callable[[], Any]


def medians(runs: dict[str, Run], pairs: int, *, warm: bool = True) -> dict[str, float]:
    """Return each run's median time in milliseconds, all of them taken in turn.

    Args:
        runs: what is measured.
        pairs: how many times.
        warm: whether each is run once before, which does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(0 if warm else 1, pairs + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if round_number:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: float(np.median(taken)) for name, taken in times.items()}


class Ours:
    """The decoder as the service runs it."""

    def __init__(self, cores: int) -> None:
        self.predictor = MaskPredictor(*seeded_networks(), team=Team(min(cores, 4), helpers=cores - 1))
        self.prepared = self.predictor.prepare(seeded_features())
        self._thread = solo_executor(1, "bench")

    def masks(self, prompts: list[Prompt]) -> list[npt.NDArray[np.bool_]]:
        """Return one full-size mask for each prompt."""
        masks: list[npt.NDArray[np.bool_]] = self.in_thread(lambda: self._masks(prompts))
        return masks

    def in_thread(self, work: Callable[[], Any]) -> Any:
        """Run something where the service would."""
        return self._thread.submit(work).result()

    def _masks(self, prompts: list[Prompt]) -> list[npt.NDArray[np.bool_]]:
        masks = []
        for group in self.predictor.batches(prompts):
            members = [prompts[index] for index in group]
            predictions = self.predictor.predict_batch(self.prepared, members, SIZE, padding=False)
            masks += self.scale([prediction.low_res_logits[0] for prediction in predictions])
        return masks

    def scale(self, low_res_logits: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.bool_]]:
        """Return logits, 256x256 each, as full-size masks."""
        library = self.predictor.library
        return self.predictor.team.map(
            lambda logits: threshold_at_original_size(logits, SIZE, library=library).full(), low_res_logits
        )


def export_to_onnx(sam: Any, folder: Path) -> Path:
    """Write the official export of the prompt encoder and mask decoder, one mask out, at full size."""
    model = upstream_package("segment_anything.utils.onnx").SamOnnxModel(sam, return_single_mask=True)
    path = folder / "decoder.onnx"
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(torch.from_numpy(value) for value in export_inputs().values()),
            path,
            input_names=list(_EXPORT_INPUTS),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
            opset_version=17,
            dynamo=False,
        )
    logging.disable(logging.NOTSET)
    return path


def export_inputs() -> dict[str, npt.NDArray[np.float32]]:
    """Return the export's inputs for the one click, the padding point included."""
    click = points_to_input_frame(POINT, SIZE)
    values: tuple[npt.NDArray[Any], ...] = (
        seeded_features(),
        np.concatenate([click, [[0.0, 0.0]]])[None],
        np.array([[1.0, -1.0]]),
        np.zeros((1, 1, 256, 256)),
        np.zeros(1),
        np.array(SIZE),
    )
    return {name: value.astype(np.float32) for name, value in zip(_EXPORT_INPUTS, values, strict=True)}


def onnxruntime_click(path: Path, threads: int) -> Run:
    """Return one click in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = export_inputs()
    return lambda: session.run(None, inputs)[0] > 0


def openvino_click(path: Path, threads: int, precision: str) -> Run:
    """Return one click in OpenVINO, with its hint for latency."""
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = openvino.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    inputs = export_inputs()
    return lambda: request.infer(inputs)["masks"] > 0


def click_runs(ours: Ours, predictor: Any, sam: Any, cores: int, folder: Path) -> dict[str, Run]:
    """Return the ways to make one click."""
    prompt = Prompt.build(point_coords=POINT, point_labels=LABEL)
    runs: dict[str, Run] = {
        "ours": lambda: ours.masks([prompt]),
        "SamPredictor.predict": lambda: predictor.predict(point_coords=POINT, point_labels=LABEL),
    }
    peers: dict[str, Callable[[Path], Run]] = {
        "ONNX Runtime": lambda path: onnxruntime_click(path, cores),
        "OpenVINO f32": lambda path: openvino_click(path, cores, "f32"),
        "OpenVINO bf16": lambda path: openvino_click(path, cores, "bf16"),
    }
    path: Path | None = None
    for name, peer in peers.items():
        try:
            path = path or export_to_onnx(sam, folder)
            runs[name] = peer(path)
        except ImportError as error:
            log(f"{name}: not installed ({error.name}), left out")
    return runs


def many_runs(ours: Ours, predictor: Any, count: int) -> dict[str, Run]:
    """Return the ways to make many clicks at once: three masks of each by upstream, the best of three by ours."""
    side = int(count**0.5)
    rows, columns = np.divmod(np.arange(count), side)
    points = np.stack([(columns + 0.5) * SIZE.width / side, (rows + 0.5) * SIZE.height / side], axis=1)
    prompts = [Prompt.build(point_coords=[point]) for point in points]
    coords = torch.from_numpy(points_to_input_frame(points, SIZE).astype(np.float32))[:, None]
    labels = torch.ones(count, 1, dtype=torch.int)
    return {"ours": lambda: ours.masks(prompts), "upstream": lambda: predictor.predict_torch(coords, labels)}


def scaling_runs(ours: Ours, predictor: Any, sam: Any) -> dict[str, Run]:
    """Return the ways to scale three masks to 1200x1800."""
    _, _, low_res = predictor.predict(point_coords=POINT, point_labels=LABEL)
    tensor = torch.from_numpy(low_res)[None]
    return {
        "ours": lambda: ours.in_thread(lambda: ours.scale(low_res)),
        "postprocess_masks": lambda: sam.postprocess_masks(tensor, input_size(SIZE), tuple(SIZE)) > 0,
    }


def rle_runs(library: Library | None) -> dict[str, Run]:
    """Return the ways to encode a disc of a tenth of the picture."""
    from pycocotools import mask as coco

    rows, columns = np.mgrid[:256, :256]
    logits = (38.0**2 - (rows - 80) ** 2 - (columns - 130) ** 2).astype(np.float32)
    mask = threshold_at_original_size(logits, SIZE)
    full = np.asfortranarray(mask.full(), np.uint8)
    return {"ours": lambda: encode_rle(mask, library=library), "pycocotools": lambda: coco.encode(full)}


def worst_and_mean_iou(ours: Ours, predictor: Any, count: int = 40) -> tuple[float, float]:
    """Return how well our masks of some clicks agree with upstream's."""
    points = np.random.default_rng(0).uniform((0, 0), (SIZE.width, SIZE.height), (count, 2))
    found = []
    for point in points:
        (mask,) = ours.masks([Prompt.build(point_coords=[point])])
        # Random weights leave ties between the three; the nearest is what ours means.
        three = predictor.predict(point_coords=point[None], point_labels=LABEL)[0]
        found.append(max((mask & other).sum() / (mask | other).sum() for other in three))
    return min(found), float(np.mean(found))


def log(text: str) -> None:
    """Print a line for a person, beside the JSON."""
    print(text, flush=True)


def hardware() -> dict[str, Any]:
    """Name the CPU, the cores used and the versions of what is measured."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    packages = ("torch", "onnxruntime", "openvino", "numpy", "segment-anything")
    installed = {name.lower() for name in (dist.metadata["Name"] for dist in metadata.distributions())}
    return {
        "cpu": names[0] if names else platform.processor(),
        "features": sorted(
            name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name
        ),
        "cores": available_cores(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: metadata.version(name) for name in packages if name in installed},
    }


def measure(pairs: int, grid_pairs: int, say: Callable[[str], None]) -> dict[str, float | None]:
    """Measure everything and return the ratios, peer's time over ours."""
    cores = available_cores()
    torch.set_num_threads(cores)
    sam = upstream_sam(*seeded_networks())
    predictor = upstream_predictor(sam, torch.from_numpy(seeded_features()), SIZE)
    ours = Ours(cores)
    ratios: dict[str, float | None] = {}

    def compare(title: str, runs: dict[str, Run], count: int) -> dict[str, float]:
        taken = medians(runs, count)
        for name, milliseconds in taken.items():
            ratio = "" if name == "ours" else f"{milliseconds / taken['ours']:8.1f}x"
            say(f"{title:32s} {name:22s} {milliseconds:10.2f} ms {ratio}  median of {count}")
        return {name: milliseconds / taken["ours"] for name, milliseconds in taken.items()}

    with tempfile.TemporaryDirectory() as folder:
        click = compare("one click", click_runs(ours, predictor, sam, cores, Path(folder)), pairs)
    ratios["click_vs_predictor"] = click["SamPredictor.predict"]
    ratios["click_vs_onnxruntime"] = click.get("ONNX Runtime")
    openvino = [ratio for name, ratio in click.items() if name.startswith("OpenVINO")]
    ratios["click_vs_openvino"] = min(openvino, default=None)
    scaling = compare("three masks to 1200x1800", scaling_runs(ours, predictor, sam), pairs)
    ratios["postprocess_vs_upstream"] = scaling["postprocess_masks"]
    compare("a mask of a tenth to RLE", rle_runs(ours.predictor.library), pairs)
    compare(
        "second click / first click",
        {
            "ours": lambda: ours.masks([Prompt.build(point_coords=POINT)]),
            "embedding prepared anew": lambda: (
                ours.in_thread(lambda: ours.predictor.prepare(seeded_features())),
                ours.masks([Prompt.build(point_coords=POINT)]),
            ),
        },
        pairs,
    )
    ratios["batch16_vs_upstream"] = compare("16 clicks in one call", many_runs(ours, predictor, 16), pairs)["upstream"]
    # Upstream takes the grid in batches of 64: one of its batches stands for the sixteen, and so does one of ours.
    grid = compare("64 clicks of a grid of 1024", many_runs(ours, predictor, 64), grid_pairs)
    ratios["grid1024_vs_upstream"] = grid["upstream"]
    worst, mean = worst_and_mean_iou(ours, predictor)
    say(f"IoU with upstream's masks, 40 clicks, random weights: mean {mean:.4f}, worst {worst:.4f}")
    say(f"memory of one cached image: {ours.prepared.nbytes / 2**20:.1f} MiB, precision {ours.predictor.precision}")
    return ratios


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object of ratios and nothing else")
    parser.add_argument("--pairs", type=int, default=20, help="how many times each is measured")
    parser.add_argument("--grid-pairs", type=int, default=20, help="the same for 64 clicks, which take upstream long")
    arguments = parser.parse_args()
    say = (lambda _: None) if arguments.json else log
    about = hardware()
    say(json.dumps(about))
    ratios = measure(arguments.pairs, arguments.grid_pairs, say)
    if arguments.json:
        print(json.dumps({**ratios, "hardware": about}))
    else:
        for name, ratio in ratios.items():
            say(f"{name:28s} {'not installed' if ratio is None else f'{ratio:.1f}x'}")


if __name__ == "__main__":
    main()
