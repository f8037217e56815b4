"""Compiles the fused engine: `python -m decoder_service.fused.build`.

`make` and the decoder's Dockerfile do so. Without a C++ compiler, or on another processor than x86-64, nothing is
built, one line says so, and the decoder runs its other engines.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec

from decoder_service.fused.library import FOLDER, LIBRARY, SOURCES, sources_digest

# Everything that AVX-512 BF16 and AMX need; `load_library` asks the CPU before it runs any of it.
_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno"),
    *(
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx512bf16",
        "-mfma",
        "-mpopcnt",
        "-mbmi",
        "-mlzcnt",
        "-mamx-tile",
        "-mamx-bf16",
    ),
)


def compiler() -> list[str] | None:
    """Return the command of a C++ compiler: `$CXX`, one of the system's, or that of the package ziglang."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "c++"] if find_spec("ziglang") else None


def main() -> int:
    """Build the library; return 0 unless a compiler that was there failed."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        print("The fused engine is for Linux on x86-64; the decoder runs its fast engine here.")
        return 0
    command = compiler()
    if command is None:
        print("There is no C++ compiler, so the decoder runs its fast engine. With g++ or the Python package ziglang, ")
        print("python -m decoder_service.fused.build makes the fused one, which is several times faster.")
        return 0
    unfinished = LIBRARY.with_suffix(f".{os.getpid()}")
    sources = [str(FOLDER / name) for name in SOURCES if name.endswith(".cpp")]
    define = f'-DSAMOVAR_SOURCES="{sources_digest()}"'
    done = subprocess.run(  # noqa: S603 - the compiler, on our own files
        [*command, *_FLAGS, define, *sources, "-o", str(unfinished)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        print(f"{shlex.join(command)} could not compile the fused engine:\n{done.stderr[-2000:]}", file=sys.stderr)
        return 1
    # At once, since a decoder may be starting.
    unfinished.replace(LIBRARY)
    print(f"Compiled the fused engine with {command[0]}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
