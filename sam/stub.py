"""The stub model: no network, but masks that say what they were made from. For tests of everything around a model.

Its mask shows the digest of the picture and the place of the prompt, so that an answer meant for another request is
seen at once; it costs no processor time, and takes as long as it is told to. It is served only where `checkpoint` names
it:

    stub:VERSION                              a model whose fingerprint depends on VERSION alone
    stub:VERSION?encode_s=0.2&decode_s=0.01   and how long it sleeps for a batch of pictures, or of prompts
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import parse_qsl

from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.errors import StartupError

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
    """

    version: str
    encode_s: float = 0.0
    decode_s: float = 0.0

    @property
    def identity(self) -> ModelIdentity:
        """The model, as embeddings and answers name it."""
        fingerprint = hashlib.sha256(f"{STUB}/{self.version}".encode()).hexdigest()
        return ModelIdentity(STUB, fingerprint, CheckpointOrigin.RANDOM)


def is_stub(checkpoint: str | None) -> bool:
    """Whether the setting `checkpoint` asks for the stub."""
    return checkpoint is not None and checkpoint.startswith(STUB_PREFIX)


def parse_stub(checkpoint: str) -> StubModel:
    """Read the setting `checkpoint`.

    Raises:
        StartupError: it is not as this module's docstring says.
    """
    version, _, query = checkpoint.removeprefix(STUB_PREFIX).partition("?")
    try:
        times = {
            name: float(value) for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        }
        if not version or not times.keys() <= {"encode_s", "decode_s"}:
            raise ValueError
        if not all(0 <= seconds <= _LONGEST_S for seconds in times.values()):
            raise ValueError
    except ValueError:
        raise StartupError(
            f"--checkpoint {checkpoint} is no stub. Write stub:VERSION or stub:VERSION?encode_s=0.2&decode_s=0.01, the "
            f"times between 0 and {_LONGEST_S:.0f} seconds."
        ) from None
    return StubModel(version, **times)
