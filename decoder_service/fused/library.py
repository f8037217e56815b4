"""The compiled code of the fused mask decoder."""

from __future__ import annotations

from pathlib import Path

from sam.compiled.library import INTEGER, LONG, POINTER, SINGLE, Sources

CHANNELS = 256
HEADS = 8
BLOCK = 64
"""The code works on blocks of so many positions: a part of an image is a multiple."""

MAX_TOKENS = 32
"""The most tokens of one prompt: five of the model's and its points."""

SOURCES = Sources(
    Path(__file__).parent,
    ("image_side.cpp", "numbers.h", "runs.cpp", "scaling.cpp", "token_side.cpp"),
    {
        "samovar_look": [INTEGER, POINTER, POINTER, INTEGER, POINTER, INTEGER, LONG, POINTER, POINTER],
        "samovar_update_and_look": [
            *(INTEGER, POINTER, POINTER, INTEGER),
            *(POINTER, POINTER, POINTER),
            *(POINTER, POINTER, SINGLE),
            *(POINTER, INTEGER, LONG),
            *(POINTER, POINTER, POINTER),
        ],
        "samovar_upscale": [
            *(INTEGER, POINTER, INTEGER),
            *(POINTER, POINTER, POINTER, POINTER, SINGLE, POINTER, POINTER),
            *(POINTER, INTEGER, POINTER, LONG),
        ],
        "samovar_begin_tokens": [POINTER, POINTER, INTEGER, INTEGER, POINTER, POINTER, POINTER],
        "samovar_next_tokens": [
            *(POINTER, INTEGER, POINTER, INTEGER, INTEGER),
            *(POINTER, POINTER, INTEGER),
            *(POINTER, POINTER, POINTER, POINTER, POINTER, POINTER),
        ],
        "samovar_end_tokens": [POINTER, INTEGER, INTEGER, POINTER, POINTER, INTEGER, POINTER, POINTER],
        "samovar_threshold": [
            *(POINTER, SINGLE, SINGLE, SINGLE),
            *(POINTER, POINTER, INTEGER),
            *(POINTER, POINTER, INTEGER, POINTER),
            *(POINTER, POINTER),
        ],
    },
    {
        "samovar_room": [INTEGER],
        "samovar_runs": [
            *(POINTER, INTEGER, INTEGER, LONG),
            *(INTEGER, INTEGER, INTEGER, INTEGER),
            *(POINTER, LONG),
        ],
    },
)
