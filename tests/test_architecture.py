"""The arrows between packages, held by looking at what the code imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICES = {"gateway", "encoder_service", "decoder_service"}
OURS = SERVICES | {"sam", "samovar", "starter", "bench", "tests"}
MAY_IMPORT = {
    "sam": {"sam"},
    "gateway": {"gateway", "sam"},
    "encoder_service": {"encoder_service", "sam"},
    "decoder_service": {"decoder_service", "sam"},
    "samovar": {"samovar", "sam"} | SERVICES,
}
PURE = ["model.py", "masks.py", "prompts.py", "images.py", "preprocessing.py", "mask_encoding.py"]


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _packages(file: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(file)}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_point_one_way(package: str) -> None:
    """samovar imports the services, services import sam, and nothing else of ours imports anything of ours."""
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        wrong = (_packages(file) & OURS) - MAY_IMPORT[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_the_core_knows_no_grpc_redis_or_protobuf() -> None:
    """What computes could run in a notebook."""
    files = [file for service in SERVICES for file in (ROOT / service).glob("*.py") if file.name in PURE]
    assert len(files) >= 5
    for file in files:
        names = set(_imports(file))
        wrong = {name for name in names if name.split(".")[0] in {"grpc", "redis", "google"} or "_pb2" in name}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_the_store_knows_no_torch() -> None:
    """Neither the store nor anything it imports needs torch."""
    _assert_absent("sam.embedding_store", "torch")


def test_the_gateway_runs_without_torch() -> None:
    """The gateway's whole import graph is free of torch, Redis and SAM."""
    _assert_absent("gateway.__main__", "torch", "redis", "segment_anything", "aiohttp")


def test_no_service_imports_torchvision() -> None:
    """Neither service carries torchvision along, nor upstream's package as a whole."""
    for service in ("encoder_service", "decoder_service"):
        _assert_absent(f"{service}.__main__", "torchvision", "segment_anything")


def test_a_ready_decoder_has_not_imported_torchs_compiler() -> None:
    """From its start to its first click a decoder loads nothing of torch's compiler, which would take two seconds."""
    program = """
import asyncio, sys
from decoder_service.service import decoder_running
from decoder_service.settings import DecoderSettings
from sam.embedding_store.in_process import InProcessBackend

async def main():
    settings = DecoderSettings(model="starter")
    async with decoder_running(settings, settings, 0, InProcessBackend(max_bytes=1)):
        assert "torch" in sys.modules and "torch._dynamo" not in sys.modules

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _assert_absent(module: str, *absent: str) -> None:
    program = (
        f"import sys, {module}\n"
        f"found = {{name.split('.')[0] for name in sys.modules}} & set({absent!r})\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
