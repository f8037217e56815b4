"""Generate `sam/v1/` from `protos/sam/v1/*.proto`; what `make proto` runs.

Messages and their type stubs are generated from every file, servicers and their stubs from `*_service.proto` alone:
the gRPC plugin would otherwise write an empty `_pb2_grpc.py` beside every message file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def generate(destination: Path) -> None:
    """Write the generated package below `destination`, as `sam/v1/`.

    Raises:
        RuntimeError: the compiler refused a file; its messages are on standard error.
    """
    package = destination / "sam" / "v1"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    files = sorted((PROTOS / "sam" / "v1").glob("*.proto"))
    services = [file for file in files if file.stem.endswith("_service")]
    _run(files, destination, ["--python_out", "--mypy_out"])
    _run(services, destination, ["--grpc_python_out", "--mypy_grpc_out"])
    docstring = '"""Generated from `protos/sam/v1/` by `make proto`; not edited by hand."""\n'
    (package / "__init__.py").write_text(docstring)


def _run(files: list[Path], destination: Path, outputs: list[str]) -> None:
    # The stub plugins are console scripts that live beside the interpreter that runs this.
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    arguments = ["protoc", f"-I{PROTOS}", f"-I{WELL_KNOWN}", *plugins]
    arguments += [f"{output}={destination}" for output in outputs]
    if protoc.main([*arguments, *map(str, files)]) != 0:
        raise RuntimeError("protoc failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generate sam/v1/ from the protos.")
    parser.add_argument("destination", type=Path, nargs="?", default=PROTOS.parent)
    generate(parser.parse_args().destination)
