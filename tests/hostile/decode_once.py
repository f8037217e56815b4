"""Decodes one picture as the encoder does, and prints what that took: `python -m tests.hostile.decode_once FILE`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from encoder_service.images import open_image
from encoder_service.limits import DEFAULT_FORMATS, ImageLimits
from encoder_service.preprocessing import prepare_image
from tests.encoder_service import pictures


def main() -> None:
    """Print the growth of this process's memory at its peak, in bytes, and the seconds of its processor."""
    data = Path(sys.argv[1]).read_bytes()
    for kind in DEFAULT_FORMATS:  # What decoders load once is not what a picture costs.
        open_image(pictures.encoded(kind=kind), ImageLimits())
    before = _bytes_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Sets the peak to what is held now.
    started = time.process_time()
    prepared = prepare_image(data, ImageLimits())
    seconds = time.process_time() - started
    figures = {
        "growth": _bytes_of("VmHWM") - before,
        "seconds": seconds,
        "pixels": prepared.original_size.height * prepared.original_size.width,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    sys.stdout.write(json.dumps(figures))


def _bytes_of(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
