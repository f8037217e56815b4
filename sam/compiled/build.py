"""Compiles the services' code: `python -m sam.compiled.build`.

`make` and the Dockerfiles do so. Without a C++ compiler, or on another processor than x86-64, nothing is built, one
line says so, and the services run their other engines.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

from sam.compiled.library import ROOT, Sources

SERVICES = ("decoder_service", "encoder_service")
"""Those whose `fused` has sources; a container holds one of them."""

# Everything that AVX-512 BF16 and AMX need; `Sources.load` asks the CPU before it runs any of it.
_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", f"-I{ROOT}"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mpopcnt", "-mbmi", "-mlzcnt"),
    *("-mamx-tile", "-mamx-bf16"),
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
    """Build the libraries; return 0 unless a compiler that was there failed."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        print("The fused engines are for Linux on x86-64; the services run their fast engines here.")
        return 0
    command = compiler()
    if command is None:
        print("There is no C++ compiler, so the services run their fast engines. With g++ or the Python package ")
        print("ziglang, python -m sam.compiled.build makes the fused ones, which are several times faster.")
        return 0
    for service in SERVICES:
        if find_spec(service) is None or find_spec(f"{service}.fused") is None:
            continue
        problem = build(command, import_module(f"{service}.fused.library").SOURCES)
        if problem:
            print(f"{shlex.join(command)} could not compile {service}'s fused engine:\n{problem}", file=sys.stderr)
            return 1
        print(f"Compiled {service}'s fused engine with {command[0]}.")
    return 0


def build(command: list[str], sources: Sources) -> str:
    """Compile one library; return what the compiler complained of if it failed."""
    library = sources.library
    unfinished = library.with_suffix(f".{os.getpid()}")
    files = [str(file) for file in sources.files if file.suffix == ".cpp"]
    define = f'-DSAMOVAR_SOURCES="{sources.digest()}"'
    done = subprocess.run(  # noqa: S603 - the compiler, on our own files
        [*command, *_FLAGS, define, *files, "-o", str(unfinished)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        return done.stderr[-2000:] or "it said nothing"
    # At once, since a service may be starting.
    unfinished.replace(library)
    return ""


if __name__ == "__main__":
    sys.exit(main())
