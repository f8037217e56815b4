"""Checkpoints: finding one, checking it, and loading only the parts of it that a service uses.

A checkpoint is a file in SAM's format: a state dict whose keys start with `image_encoder.`, `prompt_encoder.` or
`mask_decoder.`, as a `.pth` of torch or as `.safetensors`. Its SHA-256 is the fingerprint of the model. It is checked
before the file is opened as anything but bytes, and a `.pth` is opened with `weights_only=True`: it is a pickle.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import structlog
import torch
from torch import nn

from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.errors import StartupError
from sam.published import DEFAULT_MODEL, PUBLISHED, pull, sha256_of, starter_checkpoint, verify
from sam.settings import ModelSettings
from sam.stub import StubModel, find_stub

log = structlog.get_logger("sam.checkpoints")

STARTER = "starter"
RANDOM_PREFIX = "random:"

# The width of a published image encoder tells which one it is.
_MODEL_BY_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


class Checkpoint(Protocol):
    """Weights that can be loaded into the networks of one model."""

    @property
    def identity(self) -> ModelIdentity:
        """The model that the weights make."""

    def load_into(self, module: nn.Module, part: str) -> None:
        """Load one part (`image_encoder`, `prompt_encoder` or `mask_decoder`) into a module.

        The module may have been built on torch's `meta` device: it then adopts the file's own pages without a copy.

        Raises:
            StartupError: the part does not fit the module.
        """


@dataclass(frozen=True)
class FileCheckpoint:
    """A checkpoint file whose digest is known."""

    identity: ModelIdentity
    path: Path

    def load_into(self, module: nn.Module, part: str) -> None:
        """See `Checkpoint.load_into`."""
        prefix = f"{part}."
        tensors = {key.removeprefix(prefix): value for key, value in _read(self.path).items() if key.startswith(prefix)}
        try:
            module.load_state_dict(tensors, assign=any(tensor.is_meta for tensor in module.parameters()))
        except RuntimeError as error:
            raise StartupError(
                f"The checkpoint {self.path} does not fit the {part} of {self.identity.name}: "
                f"{str(error).splitlines()[-1].strip()} Choose the model it was made for with --model."
            ) from None
        # Half-precision checkpoints (the starter is one) are computed with in float32.
        module.float().eval().requires_grad_(False)


@dataclass(frozen=True)
class RandomCheckpoint:
    """Seeded random weights: the masks mean nothing. Every tensor depends on the seed and on its own name alone."""

    identity: ModelIdentity
    seed: int

    def load_into(self, module: nn.Module, part: str) -> None:
        """See `Checkpoint.load_into`."""
        if any(tensor.is_meta for tensor in module.parameters()):
            module.to_empty(device="cpu")
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                digest = hashlib.sha256(f"{self.seed}/{part}.{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                _randomise(tensor, name, generator)
        module.eval().requires_grad_(False)


@dataclass(frozen=True)
class StubCheckpoint:
    """No weights at all: the services that know the stub build it from `model` and ask for none."""

    model: StubModel

    @property
    def identity(self) -> ModelIdentity:
        """See `Checkpoint.identity`."""
        return self.model.identity

    def load_into(self, module: nn.Module, part: str) -> None:
        """See `Checkpoint.load_into`."""
        raise StartupError(f"The stub model has no weights for a {part}.")


def find_checkpoint(settings: ModelSettings) -> Checkpoint:
    """Find, download if need be, and verify the checkpoint that the settings ask for.

    Raises:
        StartupError: there is none, or it is not what it should be; the message says what to do.
    """
    stub = find_stub(settings)
    if stub is not None:
        return StubCheckpoint(stub)
    wanted = settings.checkpoint
    if wanted is None:
        return _published_or_starter(settings)
    if wanted.startswith(RANDOM_PREFIX):
        return _random(settings.model or DEFAULT_MODEL, wanted.removeprefix(RANDOM_PREFIX))
    return _custom(Path(wanted), settings.model)


def _published_or_starter(settings: ModelSettings) -> Checkpoint:
    if settings.model == STARTER:
        return _starter()
    model = settings.model or DEFAULT_MODEL
    try:
        path = pull(model, settings)
    except StartupError as error:
        if settings.model or (settings.weights_dir / PUBLISHED[model].file_name).exists():
            raise
        starter = _starter(cause=f"{error} And ")
        log.warning("vit_b is neither here nor to be downloaded; serving the bundled starter", cause=str(error))
        return starter
    identity = ModelIdentity(model, PUBLISHED[model].sha256, CheckpointOrigin.PUBLISHED)
    return FileCheckpoint(identity, path)


def _starter(cause: str = "") -> Checkpoint:
    path = starter_checkpoint()
    if path is None:
        raise StartupError(
            f"{cause}this build carries no starter checkpoint. Run 'samovar weights pull vit_b' where there is a "
            "network, give a file with --checkpoint, or try --checkpoint random:0 (meaningless masks)."
        )
    return FileCheckpoint(ModelIdentity(STARTER, sha256_of(path), CheckpointOrigin.STARTER), path)


def _random(model: str, seed_text: str) -> Checkpoint:
    if not seed_text.isdecimal():
        raise StartupError("--checkpoint random:SEED needs a whole number as its seed, such as random:0.")
    fingerprint = hashlib.sha256(f"random/{model}/{seed_text}".encode()).hexdigest()
    _warn_of_random(model, int(seed_text))
    return RandomCheckpoint(ModelIdentity(model, fingerprint, CheckpointOrigin.RANDOM), int(seed_text))


@cache
def _warn_of_random(model: str, seed: int) -> None:
    # Once, although the all-in-one asks for each of its services.
    log.warning("serving random weights: the masks mean nothing", model=model, seed=seed)


def _custom(path: Path, model: str | None) -> Checkpoint:
    if not path.is_file():
        raise StartupError(f"There is no checkpoint file {path}. Check --checkpoint.")
    published = {known.file_name: (name, known) for name, known in PUBLISHED.items()}.get(path.name)
    if published is not None:
        served, known = published
        verify(path, known)
        digest = known.sha256
    else:
        digest = sha256_of(path)
        served = _model_of(path)
    if model is not None and model != served:
        raise StartupError(f"The checkpoint {path} is one of {served}, but --model says {model}.")
    origins = {known.sha256: CheckpointOrigin.PUBLISHED for known in PUBLISHED.values()}
    return FileCheckpoint(ModelIdentity(served, digest, origins.get(digest, CheckpointOrigin.CUSTOM)), path)


def _model_of(path: Path) -> str:
    tensors = _read(path)
    missing = [
        part
        for part in ("image_encoder", "prompt_encoder", "mask_decoder")
        if not any(key.startswith(f"{part}.") for key in tensors)
    ]
    if missing:
        raise StartupError(f"The file {path} is not a checkpoint in SAM's format: it has no {missing[0]} weights.")
    position = tensors.get("image_encoder.pos_embed")
    if position is None:
        return STARTER
    width = position.shape[-1]
    if width not in _MODEL_BY_WIDTH:
        raise StartupError(f"The checkpoint {path} is of no known model: its image encoder is {width} wide.")
    return _MODEL_BY_WIDTH[width]


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """Map the file; pages are read when a tensor is used."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            # Files that torch wrote before 1.6 are no zip archives, and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # Whatever the parsers raise on a file that is none: the operator needs the name of the file, not theirs.
        raise StartupError(
            f"The file {path} cannot be read as a checkpoint ({type(error).__name__}). "
            "It must be a state dict saved by torch, or safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise StartupError(f"The file {path} is not a checkpoint in SAM's format: it is not a dict of tensors.")
    return tensors


def _randomise(tensor: torch.Tensor, name: str, generator: torch.Generator) -> None:
    """Fill a tensor so that activations keep a sensible scale through the depth of the network."""
    if tensor.ndim >= 2:
        # Embeddings and position tables are added, not multiplied through: their scale is their own.
        added = any(word in name for word in ("rel_pos", "pos_embed", "embed", "token", "gaussian_matrix"))
        fan_in = 1 if added and "patch_embed" not in name else math.prod(tensor.shape[1:])
        scale = 0.1 if "rel_pos" in name or "pos_embed" in name else 1.0
        tensor.normal_(0.0, scale / math.sqrt(fan_in), generator=generator)
    elif name.endswith("weight"):
        tensor.normal_(1.0, 0.1, generator=generator)
    else:
        tensor.normal_(0.0, 0.05, generator=generator)
