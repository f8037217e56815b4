"""The compiled code of the fused mask decoder."""

from __future__ import annotations

from pathlib import Path

from sam.compiled.library import INTEGER, LONG, POINTER, SINGLE, Sources

CHANNELS = 256
HEADS = 8

MAX_TOKENS = 32
"""The most tokens of one prompt: five of the model's and its points."""

SOURCES = Sources(
    Path(__file__).parent,
    (
        *("decode.cpp", "image_side.cpp", "numbers.h", "runs.cpp", "scaling.cpp"),
        *("sides.h", "token_side.cpp"),
    ),
    {
        "samovar_decode": [
            *(POINTER, INTEGER, POINTER, POINTER),
            *(INTEGER, INTEGER, INTEGER, SINGLE, INTEGER, INTEGER),
            *(POINTER, POINTER, POINTER),
        ],
        "samovar_help": [POINTER],
        "samovar_threshold": [
            *(POINTER, SINGLE, SINGLE, SINGLE),
            *(POINTER, POINTER, INTEGER),
            *(POINTER, POINTER, INTEGER, POINTER),
            *(POINTER, POINTER),
        ],
    },
    {
        "samovar_crew_size": [],
        "samovar_runs": [
            *(POINTER, INTEGER, INTEGER, LONG),
            *(INTEGER, INTEGER, INTEGER, INTEGER),
            *(POINTER, LONG),
        ],
    },
)
