"""The compiled code of the fused image encoder."""

from __future__ import annotations

from pathlib import Path

from sam.compiled.library import INTEGER, LONG, POINTER, SINGLE, Sources

_ATTEND = (
    *(POINTER, POINTER, INTEGER, INTEGER),
    *(INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER),
    *(POINTER, INTEGER, INTEGER),
    *(POINTER, INTEGER, INTEGER),
    *(SINGLE, POINTER),
)

SOURCES = Sources(
    Path(__file__).parent,
    ("attention.cpp", "blocks.cpp", "ends.cpp", "layers.h", "memory.h", "operands.h"),
    {
        "samovar_project": [
            *(INTEGER, INTEGER, POINTER, INTEGER, INTEGER),
            *(POINTER, POINTER, SINGLE),
            *(POINTER, POINTER, INTEGER, POINTER),
        ],
        "samovar_add_attended": [INTEGER, INTEGER, POINTER, INTEGER, INTEGER, POINTER, POINTER, POINTER],
        "samovar_add_perceptron": [
            *(INTEGER, INTEGER, POINTER, INTEGER, INTEGER),
            *(POINTER, POINTER, SINGLE),
            *(POINTER, POINTER, INTEGER, POINTER, POINTER),
        ],
        "samovar_patches": [
            *(INTEGER, INTEGER, POINTER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER),
            *(POINTER, POINTER, INTEGER, POINTER),
        ],
        "samovar_narrow": [
            *(INTEGER, INTEGER, POINTER, INTEGER, INTEGER),
            *(POINTER, INTEGER, POINTER, POINTER, SINGLE),
            *(INTEGER, INTEGER, INTEGER, INTEGER, POINTER),
        ],
        "samovar_convolve": [
            *(INTEGER, INTEGER, POINTER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER),
            *(POINTER, INTEGER, POINTER, POINTER, SINGLE),
            *(POINTER, LONG),
        ],
        "samovar_attend": [INTEGER, *_ATTEND],
        "samovar_attend_exactly": _ATTEND,
    },
)
