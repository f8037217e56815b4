"""Checkpoints: which one is served, what is refused, and that only what is needed is loaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sam.checkpoints import FileCheckpoint, RandomCheckpoint, find_checkpoint
from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.errors import StartupError
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.published import PUBLISHED, pull, verify
from sam.settings import ModelSettings
from tests.conftest import free_port
from tests.sam.file_server import FileServer

Tensors = dict[str, torch.Tensor]


def tiny_state(width: int = 768, value: float = 1.0) -> Tensors:
    """Return the few tensors by which a checkpoint of SAM is known."""
    return {
        "image_encoder.pos_embed": torch.zeros(1, 1, 1, width),
        "prompt_encoder.weight": torch.full((2, 3), value),
        "prompt_encoder.bias": torch.full((2,), value),
        "mask_decoder.weight": torch.full((2, 3), -value),
        "mask_decoder.bias": torch.full((2,), -value),
    }


def save_pth(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Save as torch does."""
    torch.save(dict(state), path)
    return path


def save_safetensors(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Save as safetensors."""
    save_file(dict(state), path)
    return path


def settings(**values: object) -> ModelSettings:
    """Return settings whose downloads reach nothing, whatever the environment says."""
    nowhere = {"model": None, "checkpoint": None, "weights_url": f"http://127.0.0.1:{free_port()}/"}
    return ModelSettings.model_validate(nowhere | values)


def sha256(path: Path) -> str:
    """Return a file's digest, in the plain way."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("width", "model"), [(768, "vit_b"), (1024, "vit_l"), (1280, "vit_h")])
@pytest.mark.parametrize(("save", "name"), [(save_pth, "mine.pth"), (save_safetensors, "mine.safetensors")])
def test_own_checkpoint(
    tmp_path: Path, save: Callable[[Tensors, Path], Path], name: str, width: int, model: str
) -> None:
    """A file of one's own is served as what its image encoder's width says, its digest being the fingerprint."""
    path = save(tiny_state(width), tmp_path / name)
    checkpoint = find_checkpoint(settings(checkpoint=str(path)))
    assert checkpoint.identity == ModelIdentity(model, sha256(path), CheckpointOrigin.CUSTOM)


def test_own_checkpoint_of_another_model(tmp_path: Path) -> None:
    """A checkpoint of another model than the one asked for is refused."""
    path = save_pth(tiny_state(768), tmp_path / "mine.pth")
    with pytest.raises(StartupError, match="is one of vit_b, but --model says vit_h"):
        find_checkpoint(settings(checkpoint=str(path), model="vit_h"))


def test_changed_checkpoint_is_another_model(tmp_path: Path) -> None:
    """A checkpoint file that was replaced has another fingerprint, in one and the same process."""
    path = tmp_path / "mine.pth"
    first = find_checkpoint(settings(checkpoint=str(save_pth(tiny_state(value=1), path)))).identity
    second = find_checkpoint(settings(checkpoint=str(save_pth(tiny_state(value=2), path)))).identity
    assert first.fingerprint != second.fingerprint


def test_missing_checkpoint(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(StartupError, match=r"There is no checkpoint file .*nothing\.pth"):
        find_checkpoint(settings(checkpoint=str(tmp_path / "nothing.pth")))


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100), bytes(64)])
def test_file_that_is_no_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    """A file of something else is one line that names it, whatever the parser thought of it."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(StartupError, match=rf"{name} cannot be read as a checkpoint"):
        find_checkpoint(settings(checkpoint=str(path)))


def test_truncated_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that was cut off is refused."""
    path = save_pth(tiny_state(), tmp_path / "mine.pth")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StartupError, match="cannot be read as a checkpoint"):
        find_checkpoint(settings(checkpoint=str(path)))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    """A pickle that would run a program when read is refused, and runs nothing."""
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"image_encoder.pos_embed": _Touch(trace)}, path)
    with pytest.raises(StartupError, match="cannot be read as a checkpoint"):
        find_checkpoint(settings(checkpoint=str(path)))
    assert not trace.exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_checkpoint_without_a_part(tmp_path: Path) -> None:
    """A checkpoint that lacks one of SAM's three networks is refused, naming it."""
    state = {key: value for key, value in tiny_state().items() if not key.startswith("mask_decoder.")}
    with pytest.raises(StartupError, match="it has no mask_decoder weights"):
        find_checkpoint(settings(checkpoint=str(save_pth(state, tmp_path / "mine.pth"))))


def test_checkpoint_of_an_unknown_width(tmp_path: Path) -> None:
    """An image encoder of no known width is refused."""
    with pytest.raises(StartupError, match="its image encoder is 100 wide"):
        find_checkpoint(settings(checkpoint=str(save_pth(tiny_state(100), tmp_path / "mine.pth"))))


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(1)]])
def test_checkpoint_that_is_no_dict_of_tensors(tmp_path: Path, content: object) -> None:
    """What a training run saves around a model is refused."""
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(StartupError, match="it is not a dict of tensors"):
        find_checkpoint(settings(checkpoint=str(tmp_path / "mine.pth")))


def test_published_name_with_another_digest(tmp_path: Path) -> None:
    """A file under a published name is that file or refused, wherever it lies."""
    path = save_pth(tiny_state(), tmp_path / PUBLISHED["vit_b"].file_name)
    for asked in (settings(checkpoint=str(path)), settings(weights_dir=tmp_path)):
        with pytest.raises(StartupError, match=r"is not the published sam_vit_b_01ec64\.pth"):
            find_checkpoint(asked)


def test_right_size_is_not_enough(tmp_path: Path) -> None:
    """A file of a published checkpoint's size but not of its digest is refused."""
    known = PUBLISHED["vit_b"]._replace(size_bytes=10)
    path = tmp_path / "file.pth"
    path.write_bytes(bytes(10))
    with pytest.raises(StartupError, match="its size or SHA-256 differs"):
        verify(path, known)
    verify(path, known._replace(sha256=sha256(path)))


def test_nothing_to_serve(tmp_path: Path) -> None:
    """A model that was asked for and cannot be downloaded is an error, not another model."""
    for model in PUBLISHED:
        with pytest.raises(StartupError, match=r"Cannot download .*refused"):
            find_checkpoint(settings(model=model, weights_dir=tmp_path / "weights"))


def test_pull_checks_what_it_gets(tmp_path: Path) -> None:
    """A mirror that serves something else under a published name is found out."""
    with FileServer(bytes(1000)).running() as mirror:
        wanted = settings(weights_url=mirror.base_url.rstrip("/"), weights_dir=tmp_path)
        with pytest.raises(StartupError, match=r"is not sam_vit_h_4b8939\.pth: it has 1000 bytes"):
            pull("vit_h", wanted)


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5"])
def test_random_needs_a_seed(seed: str) -> None:
    """Random weights need a whole number as their seed."""
    with pytest.raises(StartupError, match="needs a whole number"):
        find_checkpoint(settings(checkpoint=f"random:{seed}"))


def test_random_weights_depend_on_model_and_seed() -> None:
    """Random weights say what they are, and each model and seed has a fingerprint of its own."""
    asked = [("vit_b", 0), ("vit_b", 1), ("vit_h", 0)]
    found = [find_checkpoint(settings(model=model, checkpoint=f"random:{seed}")).identity for model, seed in asked]
    assert {identity.origin for identity in found} == {CheckpointOrigin.RANDOM}
    assert len({identity.fingerprint for identity in found}) == 3
    assert find_checkpoint(settings(checkpoint="random:0")).identity == found[0]


def test_random_weights_are_the_same_on_both_sides() -> None:
    """Encoder and decoder get equal weights for a part, whether it was built in memory or without any."""
    checkpoint = find_checkpoint(settings(checkpoint="random:7"))
    here = build_mask_decoder()
    with torch.device("meta"):
        there = build_mask_decoder()
    for module in (here, there):
        checkpoint.load_into(module, "mask_decoder")
    for name, tensor in here.state_dict().items():
        assert torch.equal(tensor, there.state_dict()[name]), name
        assert tensor.isfinite().all()
    other = build_mask_decoder()
    find_checkpoint(settings(checkpoint="random:8")).load_into(other, "mask_decoder")
    assert not torch.equal(here.mask_tokens.weight, other.mask_tokens.weight)


def test_relative_positions_are_random_too() -> None:
    """Tables of relative positions, which start at zero, are filled: otherwise nothing would test them."""
    module = nn.Module()
    module.rel_pos_h = nn.Parameter(torch.zeros(27, 64))
    RandomCheckpoint(ModelIdentity("vit_b", "0" * 64, CheckpointOrigin.RANDOM), 0).load_into(module, "image_encoder")
    assert module.rel_pos_h.std() > 0.05


@pytest.mark.parametrize(("save", "name"), [(save_pth, "mine.pth"), (save_safetensors, "mine.safetensors")])
def test_real_networks_are_loaded_without_memory_of_their_own(
    tmp_path: Path, save: Callable[[Tensors, Path], Path], name: str
) -> None:
    """SAM's own networks, built on the meta device, take every weight of their part from the file."""
    parts: dict[str, nn.Module] = {"prompt_encoder": build_prompt_encoder(), "mask_decoder": build_mask_decoder()}
    state = {"image_encoder.pos_embed": torch.zeros(1, 1, 1, 768)}
    for part, module in parts.items():
        state |= {f"{part}.{key}": tensor.clone() for key, tensor in module.state_dict().items()}
    checkpoint = find_checkpoint(settings(checkpoint=str(save(state, tmp_path / name))))
    with torch.device("meta"):
        loaded: dict[str, nn.Module] = {"prompt_encoder": build_prompt_encoder(), "mask_decoder": build_mask_decoder()}
    for part, module in loaded.items():
        checkpoint.load_into(module, part)
        assert not module.training
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, parts[part].state_dict()[key]), key
            assert not tensor.requires_grad


@pytest.mark.parametrize(("save", "name"), [(save_pth, "mine.pth"), (save_safetensors, "mine.safetensors")])
def test_half_precision_becomes_float32(tmp_path: Path, save: Callable[[Tensors, Path], Path], name: str) -> None:
    """A checkpoint in half precision is computed with in float32."""
    state = {key: tensor.half() for key, tensor in tiny_state().items()}
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    find_checkpoint(settings(checkpoint=str(save(state, tmp_path / name)))).load_into(module, "mask_decoder")
    assert module.weight.dtype == torch.float32
    assert module(torch.ones(3)).tolist() == [-4.0, -4.0]


def test_part_that_does_not_fit(tmp_path: Path) -> None:
    """A part of another shape than its network is refused, saying which."""
    checkpoint = find_checkpoint(settings(checkpoint=str(save_pth(tiny_state(), tmp_path / "mine.pth"))))
    with pytest.raises(StartupError, match=r"does not fit the mask_decoder of vit_b: .*size mismatch for weight"):
        checkpoint.load_into(nn.Linear(4, 2), "mask_decoder")


def test_files_of_old_torch(tmp_path: Path) -> None:
    """A file that torch wrote before its files were zip archives is read as well."""
    path = tmp_path / "mine.pth"
    torch.save(tiny_state(), path, _use_new_zipfile_serialization=False)
    module = nn.Linear(3, 2)
    find_checkpoint(settings(checkpoint=str(path))).load_into(module, "prompt_encoder")
    assert module.weight.tolist() == [[1.0] * 3] * 2


def test_other_parts_are_not_read(tmp_path: Path) -> None:
    """Loading a small part of a big file, of either format, takes no memory for the rest of it."""
    encoder_mib = 128
    state = tiny_state() | {"image_encoder.neck": torch.ones(encoder_mib, 2**18)}
    paths = [save_pth(state, tmp_path / "big.pth"), save_safetensors(state, tmp_path / "big.safetensors")]
    program = f"""
import torch, safetensors.torch
from pathlib import Path
from sam.checkpoints import FileCheckpoint
from sam.embedding import CheckpointOrigin, ModelIdentity

def peak_mib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024

before = peak_mib()
for path in {[str(path) for path in paths]!r}:
    checkpoint = FileCheckpoint(ModelIdentity("vit_b", "0" * 64, CheckpointOrigin.CUSTOM), Path(path))
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    checkpoint.load_into(module, "mask_decoder")
    assert module.weight.tolist() == [[-1.0] * 3] * 2
print(peak_mib() - before)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) < encoder_mib / 4


def test_identity_is_of_the_file(tmp_path: Path) -> None:
    """The checkpoint that was found reads the file that was verified."""
    path = save_pth(tiny_state(), tmp_path / "mine.pth")
    checkpoint = find_checkpoint(settings(checkpoint=str(path)))
    assert isinstance(checkpoint, FileCheckpoint)
    assert checkpoint.path == path
