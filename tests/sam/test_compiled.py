"""Libraries of compiled code: building and loading them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from decoder_service.fused.library import SOURCES as DECODER
from encoder_service.fused.library import SOURCES as ENCODER
from sam.compiled.library import LibraryMissing, Sources, pack
from sam.cpu import has_fast_bfloat16

SOURCES = (DECODER, ENCODER)


@pytest.mark.parametrize("sources", SOURCES, ids=lambda sources: sources.folder.parent.name)
def test_a_library_that_is_none_is_said_to_be(sources: Sources, tmp_path: Path) -> None:
    """A missing file, one that is no library and one that is not ours are each told apart."""
    other = tmp_path / "other.so"
    other.write_bytes(b"none")
    if not has_fast_bfloat16():
        pytest.skip("the CPU is asked first, and this one has no bfloat16")
    with pytest.raises(LibraryMissing, match="not compiled"):
        sources.load(path=tmp_path / "missing.so")
    with pytest.raises(LibraryMissing, match="cannot be loaded"):
        sources.load(path=other)
    if sources.library.exists():
        stale = sources.library.read_bytes()
        other.write_bytes(stale.replace(sources.load().functions.samovar_sources(), b"0" * 16))
        with pytest.raises(LibraryMissing, match="another version"):
            sources.load(path=other)


@pytest.mark.parametrize(
    ("variables", "status", "text"),
    [({"PATH": ""}, 0, "no C++ compiler"), ({"PATH": "", "CXX": "/bin/false"}, 1, "could not compile")],
)
def test_a_build_without_a_compiler(variables: dict[str, str], status: int, text: str) -> None:
    """Without a compiler the build says so and is content; one that fails is an error. What is there stays."""
    libraries = [sources.library for sources in SOURCES]
    before = [library.stat().st_mtime_ns if library.exists() else None for library in libraries]
    environment = {key: value for key, value in os.environ.items() if key != "CXX"} | variables
    done = subprocess.run(
        [sys.executable, "-m", "sam.compiled.build"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert text in done.stdout + done.stderr
    assert before == [library.stat().st_mtime_ns if library.exists() else None for library in libraries]


def test_only_whole_tiles_are_packed() -> None:
    """A matrix that is not made of whole tiles is refused before compiled code reads beyond its end."""
    try:
        library = ENCODER.load()
    except LibraryMissing as error:
        pytest.skip(str(error))
    assert pack(library, torch.ones(32, 16)).tolist() == [1.0] * 512
    for shape in ((31, 16), (32, 15), (16, 16)):
        with pytest.raises(ValueError, match="multiples"):
            pack(library, torch.ones(shape))
