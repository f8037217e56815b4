"""The stub model: no network, but masks that say what they were made from. For tests of everything around a model.

Its mask shows the digest of the picture and the place of the prompt, so that an answer meant for another request is
seen at once; it costs no processor time, and takes as long as it is told to. It is served only where `checkpoint` names
it:

    stub:VERSION                              a model whose fingerprint depends on VERSION alone
    stub:VERSION?encode_s=0.2&decode_s=0.01   and how long it sleeps for a batch of pictures, or of prompts
    stub:VERSION?broken_s=3                   and how long its device stays broken once a picture has broken it
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from urllib.parse import parse_qsl

import structlog

from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.errors import StartupError
from sam.settings import ModelSettings

log = structlog.get_logger("sam.stub")

STUB = "stub"
"""The name of the model."""

STUB_PREFIX = f"{STUB}:"

GRID = 16
"""A mask is a grid of so many rows and columns; see `decoder_service.stub_mask_decoder`."""

DIGEST_ROWS = 14
"""The grid's rows that show the picture's digest; the others show the prompt's first point."""

_LONGEST_S = 60.0


@dataclass(frozen=True)
class StubModel:
    """What the stub is told.

    Attributes:
        version: tells one stub from another, as a checkpoint's digest does.
        encode_s: how long a batch of pictures takes, in seconds.
        decode_s: how long a batch of prompts takes, in seconds.
        broken_s: how long every picture fails after one that breaks the device, in seconds; 0: that one alone.
    """

    version: str
    encode_s: float = 0.0
    decode_s: float = 0.0
    broken_s: float = 0.0

    @property
    def identity(self) -> ModelIdentity:
        """The model, as embeddings and answers name it."""
        fingerprint = hashlib.sha256(f"{STUB}/{self.version}".encode()).hexdigest()
        return ModelIdentity(STUB, fingerprint, CheckpointOrigin.RANDOM)


def find_stub(settings: ModelSettings) -> StubModel | None:
    """Return the stub that the settings ask for by name; None if they ask for a model.

    Raises:
        StartupError: what they ask for is not as this module's docstring says, or a model, too.
    """
    wanted = settings.checkpoint
    if wanted is None or not wanted.startswith(STUB_PREFIX):
        return None
    if settings.model is not None:
        raise StartupError(
            f"--checkpoint {wanted} is the stub, but --model says {settings.model}. Leave out one of them."
        )
    stub = _parse(wanted)
    _warn(wanted)
    return stub


@cache
def _warn(wanted: str) -> None:
    # Once, although the all-in-one asks for each of its services.
    log.warning("serving the stub model: its masks show what they were made from, and mean nothing", checkpoint=wanted)


def _parse(checkpoint: str) -> StubModel:
    """Read the setting `checkpoint`.

    Raises:
        StartupError: it is not as this module's docstring says.
    """
    version, _, query = checkpoint.removeprefix(STUB_PREFIX).partition("?")
    try:
        times = {
            name: float(value) for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        }
        if not version or not times.keys() <= {"encode_s", "decode_s", "broken_s"}:
            raise ValueError
        if not all(0 <= seconds <= _LONGEST_S for seconds in times.values()):
            raise ValueError
    except ValueError:
        raise StartupError(
            f"--checkpoint {checkpoint} is no stub. Write stub:VERSION or stub:VERSION?encode_s=0.2&decode_s=0.01, the "
            f"times between 0 and {_LONGEST_S:.0f} seconds."
        ) from None
    return StubModel(version, **times)
