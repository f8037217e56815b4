"""The image encoder on a GPU, in one command of under eight minutes: `python -m bench.gpu [--json] [--quick]`.

Needs torch with its Triton, numpy, pillow, grpcio and protobuf, and nothing else of what Samovar needs; weights are
random and seeded. Each stage is a process of its own with a time limit: what fails or hangs costs its own rows only,
and every row is printed as soon as it is known. `bench/gpu_stages.py` says what is measured,
`bench/gpu_measuring.py` how.

With `--device cpu` a tiny network goes the same way through Triton's interpreter: that tries out this program, and no
figure of it means anything. Where the variable `OUT` names a folder, `gpu.json` is written there after each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_BUDGET_S = 440.0
"""For all stages together, in seconds."""

_STAGES_ON_GPU = (
    ("core vit_h", 110.0),
    ("core vit_b", 60.0),
    ("jpeg vit_h", 45.0),
    ("jpeg vit_b", 45.0),
    ("first vit_h cold", 60.0),
    ("first vit_h warm", 45.0),
    ("first vit_b cold", 45.0),
    ("first vit_b warm", 30.0),
    ("core vit_l", 70.0),
    ("products vit_h", 40.0),
    ("tiles vit_h", 60.0),
    ("tiles vit_b", 60.0),
)
"""What matters most comes first, and how long each may take, in seconds."""

_STAGES_ON_CPU = (("all tiny", 120.0), ("first tiny cold", 60.0))


def main() -> None:
    """Run the stages and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="measure less often")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: try out this program")
    parser.add_argument("--budget", type=float, default=_BUDGET_S, help="seconds for all stages together")
    parser.add_argument("--stage", action="append", help="run this stage alone; may be said several times")
    arguments = parser.parse_args()
    stages = list(_STAGES_ON_GPU if arguments.device == "cuda" else _STAGES_ON_CPU)
    if arguments.stage:
        stages = [(name, arguments.budget) for name in arguments.stage]
    started = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as caches:
        for name, limit_s in stages:
            left_s = started + arguments.budget - time.monotonic()
            if left_s < 10:
                rows.append(_print({"stage": name, "row": "left out", "error": "no time was left"}))
                continue
            rows += _run(name, min(limit_s, left_s), arguments.device, arguments.quick, Path(caches))
            _save(rows)
    print(f"{time.monotonic() - started:.0f} s in all", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"rows": rows}))


def _run(name: str, limit_s: float, device: str, quick: bool, caches: Path) -> list[Row]:
    """Run a stage, print its rows as they come, and return them."""
    print(f"... {name}, at most {limit_s:.0f} s", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "bench.gpu_stages", *name.split(), "--device", device, *["--quick"] * quick]
    # Stages share compiled kernels, but for those that measure what compiling costs.
    kind, model, *_ = name.split()
    environment = {**os.environ, "TRITON_CACHE_DIR": str(caches / (model if kind == "first" else "shared"))}
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    overtime = threading.Timer(limit_s, process.kill)
    overtime.start()
    rows = []
    with process:
        for line in process.stdout or ():
            if line.startswith("{"):
                rows.append(_print({"stage": name, **json.loads(line)}))
    late = not overtime.is_alive()
    overtime.cancel()
    if process.returncode:
        cause = f"stopped after {limit_s:.0f} s" if late else f"ended with {process.returncode}, see above"
        rows.append(_print({"stage": name, "row": "the rest of the stage", "error": cause}))
    print(f"    {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def _print(row: Row) -> Row:
    """Print a row of the table."""
    subject = row["stage"].split()[1]
    if "error" in row:
        text = f"failed: {row['error']}"
    else:
        value, goal = row["value"], row.get("goal")
        text = value if isinstance(value, str) else f"{value:10.4g} {row.get('unit', '')}"
        if goal is not None:
            met = value >= goal if row.get("higher", True) else value <= goal
            text = f"{text:22s} goal {goal:g}: {'met' if met else 'missed'}"
    print(f"{subject:6s} {row['row']:58s} {text}", flush=True)
    return row


def _save(rows: list[Row]) -> None:
    if folder := os.environ.get("OUT"):
        (Path(folder) / "gpu.json").write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
