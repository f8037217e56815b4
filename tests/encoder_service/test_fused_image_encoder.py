"""The fused image encoder against the fast one in float32, which is upstream's to rounding."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from encoder_service import precision
from encoder_service.fast_image_encoder import FastImageEncoder, TorchAttention
from encoder_service.fused.attention import CompiledAttention, Grid
from encoder_service.fused.image_encoder import FusedImageEncoder, can_compute
from encoder_service.fused.layers import WHOLE, Lines, Patches
from encoder_service.fused.library import SOURCES
from encoder_service.model import ImageEncoder
from encoder_service.precision import MAX_RELATIVE_ERROR
from encoder_service.variants import VIT_VARIANTS, VitVariant, build_image_encoder
from sam.compiled.library import Isa, Library, LibraryMissing
from tests.encoder_service.networks import TINY, loaded, seeded_weights

VARIANTS = {
    "tiny": TINY,
    # Heads of 80 channels, as vit_h has, and hidden layers that are no multiple of 512.
    "wide heads": VitVariant(embed_dim=160, depth=3, heads=2, global_attn_indexes=(1,)),
}


def compiled(isa: Isa | None = None, *, exact: bool = False) -> Library:
    try:
        return SOURCES.load(isa, exact=exact)
    except LibraryMissing as error:
        pytest.skip(str(error))


def fused(name: str, isa: Isa, threads: int = 1) -> FusedImageEncoder:
    return FusedImageEncoder(network(name), compiled(isa), threads)


@cache
def network(name: str) -> torch.nn.Module:
    return loaded(VARIANTS[name], seeded_weights(VARIANTS[name]))


@cache
def frame(side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(side)
    coarse = torch.randn(1, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return smooth + 0.2 * torch.randn(1, 3, side, side, generator=generator)


@cache
def exact(name: str, side: int) -> torch.Tensor:
    with torch.inference_mode():
        embedding: torch.Tensor = FastImageEncoder(network(name), torch.float32)(frame(side))
    return embedding


# 64 x 64 tokens, of which the last windows reach 6 beyond; 5 x 5, within one window; 17 x 17, all but 3 in the first.
SIDES = pytest.mark.parametrize("side", [1024, 80, 272])


@SIDES
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("isa", Isa)
def test_it_is_the_exact_one_in_bfloat16(isa: Isa, name: str, side: int) -> None:
    """On whole and small frames the embedding is float32's to 1.5 %, and no single token is far from it."""
    with torch.inference_mode():
        found = fused(name, isa)(frame(side))
    expected = exact(name, side)
    assert found.shape == expected.shape
    difference = found - expected
    assert 0 < difference.norm() <= MAX_RELATIVE_ERROR * expected.norm()
    by_token = difference.norm(dim=1) / expected.norm(dim=1)
    assert by_token.max() <= 4 * MAX_RELATIVE_ERROR


@SIDES
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("isa", Isa)
def test_it_is_the_exact_one_in_parts(isa: Isa, name: str, side: int) -> None:
    """In float32 the embedding is that of the engine in torch to 2e-5, which bfloat16 is not by far."""
    with torch.inference_mode():
        found = FusedImageEncoder(network(name), compiled(isa), 2, parts=2)(frame(side))
    expected = exact(name, side)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert 0 < (found - expected).norm() <= 2e-5 * expected.norm()


@SIDES
@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_the_exact_one_in_float32(name: str, side: int) -> None:
    """In float32 itself the embedding differs from that of the engine in torch by rounding alone."""
    with torch.inference_mode():
        found = FusedImageEncoder(network(name), compiled(exact=True), 2, WHOLE)(frame(side))
    expected = exact(name, side)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_threads_do_not_change_a_bit() -> None:
    """However many threads share the work, the embedding is the same."""
    with torch.inference_mode():
        one, *others = (fused("tiny", Isa.AVX512, threads)(frame(272)) for threads in (1, 2, 3))
    assert all(torch.equal(one, other) for other in others)


def test_several_pictures_are_embedded_one_by_one() -> None:
    """A batch gives the embeddings of its pictures."""
    frames = torch.cat([frame(80), -frame(80)])
    encoder = fused("tiny", Isa.AVX512)
    with torch.inference_mode():
        together, apart = encoder(frames), torch.cat([encoder(frames[:1]), encoder(frames[1:])])
    assert torch.equal(together, apart)


# Windows begin in lines 14, 28, 42 and 56 of tokens, 16 pixels each.
PADDED = {
    "3:2": (683, 1024),
    "16:9": (576, 1024),
    "a strip": (20, 1024),
    "3:4": (1024, 768),
    "a post": (1024, 224),
    "nearly square": (900, 1024),
    "square": (1024, 1024),
}


def padded(rows: int, columns: int) -> torch.Tensor:
    whole = torch.zeros(1, 3, 1024, 1024)
    whole[:, :, :rows, :columns] = frame(1024)[:, :, :rows, :columns]
    return whole


@pytest.mark.parametrize("parts", [WHOLE, 1, 2])
@pytest.mark.parametrize("shape", PADDED)
def test_pictures_of_every_shape_are_embedded(shape: str, parts: int) -> None:
    """Whichever side is padded, by however many windows, the embedding is that of the engine in torch."""
    picture = padded(*PADDED[shape])
    with torch.inference_mode():
        expected = FastImageEncoder(network("tiny"), torch.float32)(picture)
        encoder = FusedImageEncoder(network("tiny"), compiled(), 2, parts)
        first, again = encoder(picture), encoder(picture)
    assert torch.equal(first, again)
    assert (first - expected).norm() <= (MAX_RELATIVE_ERROR if parts == 1 else 2e-5) * expected.norm()


@pytest.mark.parametrize("apart", [0, 1, 3])
def test_no_picture_leaves_a_trace_in_the_next(apart: int) -> None:
    """What is kept of padding is the same for all pictures: each is embedded as if it were the first, to the bit."""
    deeper = VitVariant(embed_dim=32, depth=apart + 2, heads=2, global_attn_indexes=(apart,))
    vit = loaded(deeper, seeded_weights(deeper))
    used = FusedImageEncoder(vit, compiled(), 2)
    order = ["square", "3:2", "a post", "16:9", "nearly square", "3:4", "a strip", "3:2", "16:9", "3:4", "square"]
    with torch.inference_mode():
        for shape in order:
            picture = padded(*PADDED[shape])
            assert torch.equal(used(picture), FusedImageEncoder(vit, compiled(), 2)(picture)), shape


@pytest.mark.parametrize(("shape", "lines"), [("3:2", 56), ("16:9", 42), ("a post", 14), ("square", 64)])
def test_padding_is_computed_once(shape: str, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the second picture of a shape, no window that is padding is computed until tokens see beyond it."""
    encoder, computed = FusedImageEncoder(network("tiny"), compiled(), 1), []
    whole = Patches.__call__

    def counted(self: Patches, frame: torch.Tensor, lines: Lines, first: int, tokens: torch.Tensor) -> None:
        computed.append(len(tokens))
        whole(self, frame, lines, first, tokens)

    monkeypatch.setattr(Patches, "__call__", counted)
    with torch.inference_mode():
        encoder(padded(*PADDED[shape]))
        assert sum(computed) == 64 * 64
        computed.clear()
        encoder(-padded(*PADDED[shape]))
    assert sum(computed) == lines * 64


@pytest.mark.parametrize("factor", [0.0, 30.0])
def test_odd_pictures_stay_finite(factor: float) -> None:
    """Blank frames and glaring ones give finite embeddings near the exact ones."""
    with torch.inference_mode():
        found = fused("tiny", Isa.AVX512)(factor * frame(80))
        expected = FastImageEncoder(network("tiny"), torch.float32)(factor * frame(80))
    assert torch.isfinite(found).all()
    assert (found - expected).norm() <= 2 * MAX_RELATIVE_ERROR * expected.norm()


def test_scores_that_grow_are_scaled_anew() -> None:
    """Scores far beyond what a first look at the keys has shown are weighed as in float32."""
    weights = seeded_weights(TINY)
    steep = {name: value * (3 if "attn.qkv.weight" in name else 1) for name, value in weights.items()}
    vit = loaded(TINY, steep)
    with torch.inference_mode():
        found = FusedImageEncoder(vit, compiled(Isa.AVX512), 1)(frame(272))
        half = FastImageEncoder(vit, torch.bfloat16)(frame(272))
        expected = FastImageEncoder(vit, torch.float32)(frame(272))
    # Such weights do not bear bfloat16 well: no worse than torch's.
    assert (found - expected).norm() <= 1.2 * (half - expected).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_that_outgrow_float32_are_scaled_anew(dtype: torch.dtype) -> None:
    """Keys that come late and weigh 2^144, then 2^288 times the first ones are all that counts, as in a softmax."""
    exact = dtype == torch.float32
    library = compiled(exact=exact)
    vit: Any = network("tiny")
    block = vit.blocks[1]  # attends over the whole picture, with two heads of 16 channels
    qkv = torch.randn(16 * 24, 3, 32, generator=torch.Generator().manual_seed(0))
    qkv[:, 0] = 4  # a query's product with a key of ones is 64, a quarter of which is its score
    qkv[:, 1] = 0.01 * qkv[:, 1]
    qkv[130, 1] += 6.25
    qkv[300, 1] += 12.5
    qkv = qkv.flatten(1).to(dtype)
    attended = torch.empty(16 * 24, 32, dtype=dtype)
    with torch.inference_mode():
        for piece in CompiledAttention(library, block, dtype).pieces(Grid(qkv, attended, 16, 24)):
            piece()
        expected = TorchAttention(block, torch.float32)(qkv.float().view(16, 24, 96)).view(-1, 32)
    panels = attended.view(12, -1, 32, 16 if exact else 32)  # panel, step of channels, row, channel
    found = panels.transpose(1, 2).reshape(-1, 32).float()
    torch.testing.assert_close(found, expected, rtol=1e-4 if exact else 0.02, atol=1e-4 if exact else 0.02)


@pytest.mark.parametrize("isa", Isa)
def test_float32_is_in_parts_where_tiles_are_multiplied(isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere three products in bfloat16 are slower than one in float32, and it is that."""
    library = compiled(exact=True)._replace(isa=isa)
    monkeypatch.setattr(precision, "_library_for", lambda *_, **__: library)
    monkeypatch.setattr(precision, "FusedImageEncoder", lambda *given: given)
    chosen = precision.choose_cpu_encoder(network("tiny"), "auto", "float32", threads=1)
    assert chosen.network[-1] == (2 if isa is Isa.AMX else WHOLE)  # type: ignore[index]


def test_the_engine_is_chosen() -> None:
    """auto is fused where that can run, in either precision; fused itself insists, and says why it cannot run."""
    vit = network("tiny")
    assert ImageEncoder(vit, device="cpu", engine="fast").engine == "fast"
    assert ImageEncoder(vit, device="cpu", engine="plain").engine == "plain"
    with pytest.raises(ValueError, match="vit_b"):
        ImageEncoder(build_image_encoder("starter"), device="cpu", engine="fused")
    try:
        SOURCES.load()
    except LibraryMissing:
        assert ImageEncoder(vit, device="cpu").engine == "fast"
        with pytest.raises(ValueError, match="fused engine cannot run"):
            ImageEncoder(vit, device="cpu", engine="fused")
    else:
        assert ImageEncoder(vit, device="cpu").engine == "fused"
        assert ImageEncoder(vit, device="cpu", engine="fused", precision="bfloat16").dtype is torch.bfloat16
        in_float32 = ImageEncoder(vit, device="cpu", precision="float32")
        assert (in_float32.engine, in_float32.dtype) == ("fused", torch.float32)


def test_widths_it_cannot_compute_are_left_to_others() -> None:
    """All published models can be computed; a network of other widths is not, and auto runs it with the fast engine."""
    assert all(can_compute(build_image_encoder(model)) for model in VIT_VARIANTS)
    narrow = VitVariant(embed_dim=24, depth=1, heads=3, global_attn_indexes=(0,))
    vit = loaded(narrow, seeded_weights(narrow))
    assert not can_compute(vit)
    assert ImageEncoder(vit, device="cpu", precision="bfloat16").engine == "fast"
    with pytest.raises(ValueError, match="other widths"):
        ImageEncoder(vit, device="cpu", engine="fused")
