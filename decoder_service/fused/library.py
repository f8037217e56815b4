"""The compiled code of the fused engine, loaded.

It is C++ that knows neither Python nor torch, made by `decoder_service.fused.build` and loaded by `ctypes`, which lets
other threads run meanwhile. Where it was not made, or where the CPU cannot run it, the other engines do the work.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch

FOLDER = Path(__file__).parent
SOURCES = ("image_side.cpp", "numbers.h", "runs.cpp", "scaling.cpp", "token_side.cpp")
LIBRARY = FOLDER / "_library.so"

CHANNELS = 256
HEADS = 8
BLOCK = 64
"""The code works on blocks of so many positions: a part of an image is a multiple."""

MAX_TOKENS = 32
"""The most tokens of one prompt: five of the model's and its points."""


class Isa(IntEnum):
    """How products are multiplied."""

    AVX512 = 0
    AMX = 1


class Library(NamedTuple):
    """The loaded code.

    Attributes:
        functions: what can be called.
        isa: how it is to multiply.
    """

    functions: ctypes.CDLL
    isa: Isa


class LibraryMissing(Exception):
    """The library cannot be used here; the message says why."""


def sources_digest() -> str:
    """Return what tells this version of the sources from others."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:16]


def load_library(isa: Isa | None = None, path: Path = LIBRARY) -> Library:
    """Load the library.

    Args:
        isa: how to multiply; None: as is fastest here.
        path: where it is.

    Raises:
        LibraryMissing: it was not compiled, or this CPU or system cannot run it.
    """
    # Asked before anything of the library runs: all of it is compiled for such CPUs.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not capabilities.get("avx512_bf16"):
        raise LibraryMissing("this CPU does not multiply bfloat16 (AVX-512 BF16)")
    if not path.exists():
        raise LibraryMissing("it was not compiled: run python -m decoder_service.fused.build")
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryMissing(f"it cannot be loaded ({error})") from None
    functions.samovar_sources.restype = ctypes.c_char_p
    if functions.samovar_sources().decode() != sources_digest():
        raise LibraryMissing("it is another version's: run python -m decoder_service.fused.build")
    _declare(functions)
    amx = functions.samovar_begin() == 0 and bool(capabilities.get("amx_bf16"))
    if isa is Isa.AMX and not amx:
        raise LibraryMissing("this CPU or system has no AMX")
    return Library(functions, (Isa.AMX if amx else Isa.AVX512) if isa is None else isa)


def address(tensor: torch.Tensor, element: int = 0) -> int:
    """Return where an element of a contiguous tensor lies."""
    return tensor.data_ptr() + element * tensor.element_size()


def _declare(functions: ctypes.CDLL) -> None:
    """State the signatures of what the sources export."""
    pointer, integer, long, single = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float
    signatures: dict[str, list[Any]] = {
        "samovar_pack": [pointer, integer, integer, pointer],
        "samovar_look": [integer, pointer, pointer, integer, pointer, integer, long, pointer, pointer],
        "samovar_update_and_look": [
            *(integer, pointer, pointer, integer),
            *(pointer, pointer, pointer),
            *(pointer, pointer, single),
            *(pointer, integer, long),
            *(pointer, pointer, pointer),
        ],
        "samovar_upscale": [
            *(integer, pointer, integer),
            *(pointer, pointer, pointer, pointer, single, pointer, pointer),
            *(pointer, integer, pointer, long),
        ],
        "samovar_begin_tokens": [pointer, pointer, integer, integer, pointer, pointer, pointer],
        "samovar_next_tokens": [
            *(pointer, integer, pointer, integer, integer),
            *(pointer, pointer, integer),
            *(pointer, pointer, pointer, pointer, pointer, pointer),
        ],
        "samovar_threshold": [
            *(pointer, single, single, single),
            *(pointer, pointer, integer),
            *(pointer, pointer, integer, pointer),
            *(pointer, pointer),
        ],
        "samovar_runs": [
            *(pointer, integer, integer, long),
            *(integer, integer, integer, integer),
            *(pointer, long),
        ],
        "samovar_end_tokens": [pointer, integer, integer, pointer, pointer, integer, pointer, pointer],
    }
    for name, arguments in signatures.items():
        function = getattr(functions, name)
        function.argtypes, function.restype = arguments, None
    functions.samovar_runs.restype = long
    functions.samovar_begin.argtypes = []
    functions.samovar_room.argtypes, functions.samovar_room.restype = [integer], long
