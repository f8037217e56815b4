"""The parsers of what comes from elsewhere, with random input: they take it or refuse it, and do nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoder_service.prompts import Prompt
from encoder_service.addresses import AllowedHosts, parse_address
from encoder_service.images import open_image
from encoder_service.limits import DEFAULT_FORMATS, OPTIONAL_FORMATS, ImageLimits
from encoder_service.skimming import TooManyParts, orientation_of, skim
from gateway.arrays import ArrayInvalid, array_from_lists, mask_from_polygon, npy_header
from sam.embedding import Alias, Embedding
from sam.errors import ImageError, PromptInvalid
from sam.geometry import EMBEDDING_SHAPE, LOW_RES_SIDE, Size
from sam.records import alias_to_bytes, embedding_to_bytes, mask_to_bytes
from tests.encoder_service import pictures
from tests.hostile.conftest import Begin
from tests.hostile.fuzz_targets import DIGEST, TARGETS, take_npy, take_record
from tests.hostile.tally import Tally
from tests.integration.processes import ROOT

FUZZED_S = 60
LIMITS = ImageLimits(max_pixels=2**20, formats=(*DEFAULT_FORMATS, *OPTIONAL_FORMATS))

RECORDS = [
    embedding_to_bytes(Embedding(np.zeros(EMBEDDING_SHAPE, np.float16), DIGEST, Size(9, 9), "vit_b", DIGEST)),
    embedding_to_bytes(
        Embedding(np.ones(EMBEDDING_SHAPE, np.float32), DIGEST, Size(9, 9), "vit_b", DIGEST, quantized=True)
    ),
    mask_to_bytes(np.zeros((1, LOW_RES_SIDE, LOW_RES_SIDE), np.float32), DIGEST, DIGEST),
    alias_to_bytes(Alias(DIGEST, Size(9, 9), "https://a.example/")),
]
ARRAYS = [
    npy_header(shape, np.dtype(dtype)) + bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    for shape, dtype in [((256, 256), "<f4"), ((1, 256, 256), "|b1"), (EMBEDDING_SHAPE, "<f2")]
]
PICTURES = [*pictures.default_formats().values(), *pictures.optional_formats().values()]

relaxed = settings(suppress_health_check=list(HealthCheck))

numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
nested: st.SearchStrategy[Any] = st.recursive(numbers, lambda inner: st.lists(inner, max_size=4), max_leaves=20)


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes], near: int = 400) -> bytes:
    """Return one of some files with bytes changed, left out, added or exchanged, most of them near its beginning."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, min(near, len(data)) - 1)))
        match draw(st.sampled_from(["change", "cut", "leave out", "add"])):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del data[at + draw(st.integers(0, len(data))) :]
            case "leave out":
                del data[at : at + draw(st.integers(1, 16))]
            case _:
                data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


def _count(counts: Tally, taken: bool, reason: str = "refused") -> None:
    counts.accept() if taken else counts.refuse(reason)


def test_records(tally: Begin) -> None:
    """A stored value is a record or it is dropped for one of the known causes."""
    counts = tally("stored records, damaged or made up")

    @given(damaged(RECORDS) | st.binary(max_size=200))
    @relaxed
    def read(data: bytes) -> None:
        _count(counts, take_record(data))

    read()


def test_arrays(tally: Begin) -> None:
    """A .npy file is an array of the right shape or it is refused."""
    counts = tally(".npy files, damaged or made up")

    @given(damaged(ARRAYS, near=128) | st.binary(max_size=200) | st.binary(max_size=200).map(b"\x93NUMPY\1\0".__add__))
    @relaxed
    def read(data: bytes) -> None:
        _count(counts, take_npy(data))

    read()


def test_nested_lists(tally: Begin) -> None:
    """Lists of anything are an array or a polygon, or they are refused."""
    counts = tally("nested lists for masks and embeddings")

    @given(st.lists(nested, max_size=5))
    @relaxed
    def read(value: list[Any]) -> None:
        for parse in (mask_from_polygon, lambda lists: array_from_lists(lists, [(2, 2), (3,)])):
            try:
                array = parse(value)
            except ArrayInvalid:
                counts.refuse("refused")
            else:
                assert np.isfinite(array).all()
                counts.accept()

    with np.errstate(all="ignore"):
        read()


def test_prompts(tally: Begin) -> None:
    """Anything in any field of a prompt is a prompt or refused as one."""
    counts = tally("prompts")
    coords = st.lists(st.lists(st.floats(width=32) | st.integers(-(10**9), 10**9), min_size=2, max_size=2), max_size=4)
    labels = st.lists(st.sampled_from([1, 0, -1, 2, 3]), max_size=4)
    boxes = st.lists(st.floats(-100, 100), min_size=4, max_size=4)

    @given(coords | nested, st.none() | labels | nested, st.none() | boxes | nested, st.none() | nested)
    @relaxed
    def build(coords: Any, labels: Any, box: Any, mask: Any) -> None:
        try:
            prompt = Prompt.build(point_coords=coords, point_labels=labels, box=box, mask_input=mask)
        except PromptInvalid as error:
            counts.refuse(error.reason if error.field else "crash")
        else:
            counts.accept()
            assert prompt.shape.points or prompt.shape.has_box or prompt.shape.has_mask_input

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        build()


def test_pictures(tally: Begin) -> None:
    """A damaged picture is decoded or refused, within its limits."""
    counts = tally("pictures of all kinds, damaged")

    @given(damaged(PICTURES))
    @relaxed
    def decode(data: bytes) -> None:
        try:
            picture = open_image(data, LIMITS)
        except ImageError as error:
            counts.refuse(error.reason)
        else:
            counts.accept()
            assert picture.mode == "RGB"
            assert picture.width * picture.height <= LIMITS.max_pixels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # As in the service; see `encoder_service.service`.
        decode()


def test_skimming(tally: Begin) -> None:
    """Whatever a file holds, skimming makes no more of it and finds an orientation that there is."""
    counts = tally("files to skim")

    @given(damaged(PICTURES) | st.binary(max_size=300) | st.binary(max_size=300).map(b"\xff\xd8\xff".__add__))
    @relaxed
    def leave_out(data: bytes) -> None:
        try:
            skimmed = skim(data)
        except TooManyParts:
            counts.refuse("too many parts")
            return
        counts.accept()
        assert len(skimmed.data) + len(skimmed.exif) <= len(data)
        assert orientation_of(skimmed.exif) in range(1, 9)
        assert orientation_of(data) in range(1, 9)

    leave_out()


def test_addresses(tally: Begin) -> None:
    """Any text is an address, a name or a refusal; any entry of the allow-list is one or a refusal at the start."""
    counts = tally("spellings of hosts")

    @given(st.text(max_size=30) | st.from_regex(re.compile(r"[0-9a-fx.:\[\]/%]{1,20}"), fullmatch=True))
    @relaxed
    def parse(text: str) -> None:
        for read in (parse_address, lambda entry: AllowedHosts([entry])):
            try:
                read(text)
            except ValueError:
                counts.refuse("refused")
            else:
                counts.accept()

    parse()


@pytest.mark.hostile
@pytest.mark.parametrize("name", TARGETS)
def test_by_coverage(name: str, tmp_path: Path, tally: Begin) -> None:
    """A fuzzer that looks at which lines are reached finds no fault either, in a bounded time."""
    installed = ROOT / "build" / "atheris"
    if not (installed / ".ready").exists():
        pytest.skip("there is no atheris for this Python and system; `make hostile` installs it where there is")
    counts = tally(f"bytes that atheris found, for the {name}'s parser")
    examples = tmp_path / "examples"
    examples.mkdir()
    # Small ones: a change of one byte in 2 MiB of payload reaches nothing new.
    for number, data in enumerate([*RECORDS, *ARRAYS]):
        (examples / str(number)).write_bytes(data[:400])
    options = [f"-max_total_time={FUZZED_S}", "-max_len=2000", "-rss_limit_mb=2000", "-timeout=10", str(examples)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz_by_coverage", name, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=FUZZED_S * 5,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None, done.stderr[-3000:]
    counts.outcomes["refused or taken"] += int(runs[1])
    counts.remark = f"in {FUZZED_S} s"
