"""Libraries of compiled code: where their sources are, and how they are loaded.

It is C++ that knows neither Python nor torch, made by `sam.compiled.build` and loaded by `ctypes`, which lets other
threads run meanwhile. Where it was not made, or where the CPU cannot run it, the services have other engines.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
"""Of the sources: what they include is named from here."""

_SHARED = ("library.cpp", "numbers.h", "panels.h", "products.h")
_FOLDER = Path(__file__).resolve().parent

TILE = 16
DEPTH = 32
"""Packed matrices have a multiple of so many columns, and of rows: see products.h."""


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
    """A library cannot be used here; the message says why."""


class Sources(NamedTuple):
    """The sources of one library.

    Attributes:
        folder: where they are.
        names: the files, headers among them.
        signatures: the arguments of the functions that return nothing, by name; for `ctypes`.
        counting: those of the functions that return a `long`.
    """

    folder: Path
    names: Sequence[str]
    signatures: Mapping[str, Sequence[Any]]
    counting: Mapping[str, Sequence[Any]] = {}

    @property
    def library(self) -> Path:
        """The library that they are compiled to."""
        return self.folder / "_library.so"

    @property
    def files(self) -> list[Path]:
        """All files, those that every library shares among them."""
        return [*(_FOLDER / name for name in _SHARED), *(self.folder / name for name in self.names)]

    def digest(self) -> str:
        """Return what tells this version of the sources from others."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def load(self, isa: Isa | None = None, path: Path | None = None, *, exact: bool = False) -> Library:
        """Load the library.

        Args:
            isa: how to multiply bfloat16; None: as is fastest here.
            path: where it is, if not where it belongs.
            exact: only what computes in float32 will be called, for which AVX-512 suffices.

        Raises:
            LibraryMissing: it was not compiled, or this CPU or system cannot run it.
        """
        # Asked before anything of the library runs: all of it is compiled for such CPUs.
        capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        if not exact and not capabilities.get("avx512_bf16"):
            raise LibraryMissing("this CPU does not multiply bfloat16 (AVX-512 BF16)")
        if not all(capabilities.get(name) for name in _AVX512):
            raise LibraryMissing("this CPU has no AVX-512 (F, BW, VL and DQ)")
        path = path or self.library
        if not path.exists():
            raise LibraryMissing("it was not compiled: run python -m sam.compiled.build")
        try:
            functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryMissing(f"it cannot be loaded ({error})") from None
        functions.samovar_sources.restype = ctypes.c_char_p
        if functions.samovar_sources().decode() != self.digest():
            raise LibraryMissing("it is another version's: run python -m sam.compiled.build")
        functions.samovar_begin.argtypes = []
        for name, arguments in {**_SHARED_SIGNATURES, **self.signatures, **self.counting}.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = list(arguments), LONG if name in self.counting else None
        # What tiles multiply is rounded by AVX-512 BF16, which a virtual machine may hide.
        bfloat16 = all(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
        amx = functions.samovar_begin() == 0 and bfloat16
        if isa is Isa.AMX and not amx:
            raise LibraryMissing("this CPU or system has no AMX")
        return Library(functions, (Isa.AMX if amx else Isa.AVX512) if isa is None else isa)


_AVX512 = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq")
POINTER, INTEGER, LONG, SINGLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float
_SHARED_SIGNATURES = {"samovar_pack": [POINTER, INTEGER, INTEGER, POINTER]}


def address(tensor: torch.Tensor, element: int = 0) -> int:
    """Return where an element of a contiguous tensor lies."""
    return tensor.data_ptr() + element * tensor.element_size()


def pack(library: Library, matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix, float32 k x columns, as products read it on their right: bfloat16, of as many numbers."""
    matrix = matrix.float().contiguous()
    rows, columns = matrix.shape
    if rows % DEPTH or columns % TILE:
        raise ValueError(f"a packed matrix has multiples of {DEPTH} rows and {TILE} columns, not {rows} x {columns}")
    packed = torch.empty(rows * columns, dtype=torch.bfloat16)
    library.functions.samovar_pack(address(matrix), rows, columns, address(packed))
    return packed


def pack_exactly(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix, float32 k x columns, as products in float32 read it on their right: 16 columns at a time."""
    rows, columns = matrix.shape
    if columns % TILE:
        raise ValueError(f"a packed matrix has a multiple of {TILE} columns, not {columns}")
    return matrix.float().reshape(rows, -1, TILE).transpose(0, 1).contiguous()
