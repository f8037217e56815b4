"""Looking through messages before they are parsed."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from sam.rpc import wire
from sam.rpc.wire import MAX_ELEMENTS, MAX_PARTS, TooLong, find_too_long
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, tensor_pb2

FEW, FEW_IN_ALL = 4, 12

_POINTS = st.builds(
    pb.Point,
    x=st.sampled_from([0.0, 1.5]),
    y=st.sampled_from([0.0, 2.5]),
    label=st.sampled_from([0, 1]),
)
_PROMPTS = st.builds(
    pb.Prompt,
    points=st.lists(_POINTS, max_size=FEW + 2),
    use_remembered_mask=st.booleans(),
)
_REQUESTS = st.builds(
    pb.SegmentImageRequest,
    embedding=st.none()
    | st.builds(
        embedding_pb2.ImageEmbedding,
        features=st.builds(
            tensor_pb2.Tensor, shape=st.lists(st.sampled_from([1, 300]), max_size=FEW), data=st.binary()
        ),
    ),
    prompts=st.lists(_PROMPTS, max_size=FEW + 2),
    model=st.text(),
)


def parts_of(message: Message) -> tuple[int, int]:
    """Return the longest list of a parsed message, and the elements of all: each message, packed numbers by bytes."""
    longest = total = 0
    for field, value in message.ListFields():
        if field.message_type is None and not field.is_repeated:
            continue
        values: list[Any] = list(value) if field.is_repeated else [value]
        count = len(values)
        if field.type == FieldDescriptor.TYPE_UINT32:
            count = sum(1 + (number > 127) for number in values)
        longest, total = max(longest, count), total + count
        for inner in values if field.message_type is not None else ():
            their_longest, theirs = parts_of(inner)
            longest, total = max(longest, their_longest), total + theirs
    return longest, total


@given(_REQUESTS)
def test_what_is_too_long_is_found(request: pb.SegmentImageRequest) -> None:
    """A message is refused if and only if a list of it, or all of them together, are too long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "MAX_ELEMENTS", FEW)
        patch.setattr(wire, "MAX_PARTS", FEW_IN_ALL)
        found = find_too_long(request.SerializeToString(), request.DESCRIPTOR)
    longest, total = parts_of(request)
    assert (found is not None) == (longest > FEW or total > FEW_IN_ALL)


@given(st.binary(max_size=400), st.sampled_from([b"", b"\x1a\x20", b"\x12\x10\x0a\x08", b"\x1a\xff"]))
def test_anything_is_looked_through(data: bytes, before: bytes) -> None:
    """Bytes that are no message end it no later than their end, without an error."""
    assert find_too_long(before + data, pb.SegmentImageRequest.DESCRIPTOR) is None


@given(st.binary(max_size=60))
def test_what_can_be_parsed_is_seen_as_it_is_parsed(data: bytes) -> None:
    """No bytes hide a list from the look that parsing then finds."""
    repeated = data * 40
    try:
        request = pb.SegmentImageRequest.FromString(repeated)
    except DecodeError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "MAX_ELEMENTS", FEW)
        found = find_too_long(repeated, pb.SegmentImageRequest.DESCRIPTOR)
    assert found is not None or len(request.prompts) <= FEW


def test_lists_that_are_long_are_named() -> None:
    """The list is named, whether it is the message's own or inside another, and however its elements are written."""
    kind, prompt = pb.SegmentImageRequest.DESCRIPTOR, pb.Prompt(points=[pb.Point(x=1.5)])
    empty = b"\x1a\x00" * (MAX_ELEMENTS + 1)
    assert find_too_long(empty, kind) == TooLong("prompts", MAX_ELEMENTS)
    assert find_too_long(empty[2:], kind) is None
    many = pb.SegmentImageRequest(prompts=[prompt] * (MAX_ELEMENTS + 1))
    assert find_too_long(many.SerializeToString(), kind) == TooLong("prompts", MAX_ELEMENTS)
    points = pb.SegmentImageRequest(prompts=[prompt, pb.Prompt(points=[pb.Point(x=1.5)] * (MAX_ELEMENTS + 1))])
    assert find_too_long(points.SerializeToString(), kind) == TooLong("points", MAX_ELEMENTS)
    shape = pb.SegmentImageRequest(
        embedding=embedding_pb2.ImageEmbedding(features=tensor_pb2.Tensor(shape=[0] * (MAX_ELEMENTS + 1)))
    )
    assert find_too_long(shape.SerializeToString(), kind) == TooLong("shape", MAX_ELEMENTS)


def test_nothing_hides_a_list() -> None:
    """Not a group, which parsers pass over, nor a tag or a length that is written longer than it need be."""
    kind, empty = pb.SegmentImageRequest.DESCRIPTOR, b"\x1a\x00" * (MAX_ELEMENTS + 1)
    for before in (b"\xc3\x3e\xc4\x3e", b"\xc3\x3e\x08\x01\xc4\x3e", b"\x9a\x80\x00\x80\x00", b"\xc0\x3e\x80\x01"):
        assert len(pb.SegmentImageRequest.FromString(before + empty).prompts) > MAX_ELEMENTS
        assert find_too_long(before + empty, kind) == TooLong("prompts", MAX_ELEMENTS)
    # The second is one prompt with something unknown in it, which is not to be taken for many.
    padded, one = b"\x9a\x80\x00\x80\x00", b"\x1a\x83\x00\xa0\x06\x01"
    assert find_too_long(padded * (MAX_ELEMENTS + 1), kind) == TooLong("prompts", MAX_ELEMENTS)
    assert find_too_long(one * MAX_ELEMENTS, kind) is None


def test_the_largest_request_of_the_default_settings_is_not_too_long() -> None:
    """256 prompts of 1024 points pass; with three times as many prompts there are too many points in all."""
    full = pb.Prompt(points=[pb.Point(x=1.5, y=2.5, label=pb.POINT_LABEL_FOREGROUND)] * 1024)
    request = pb.SegmentImageRequest(prompts=[full] * 256)
    assert find_too_long(request.SerializeToString(), request.DESCRIPTOR) is None
    request.prompts.extend([full] * 512)
    assert find_too_long(request.SerializeToString(), request.DESCRIPTOR) == TooLong("points", MAX_PARTS)
