"""Requests made from the descriptors that a service tells of itself: all that fits, and much that is near to it."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.encoder_service import pictures

PICTURE = pictures.encoded(24, 32)
NAME = "cat"
"""The image_id that the picture is to be embedded under, so that some requests find it."""

_KNOWN = [NAME, "dog", "k\u00fc", "\U0001f600" * 256, "x" * 257, ""]
_MODELS = ["", "", "", "stub", "vit_b", "\U0001f600" * 4000]
_LONG = [PICTURE.hex() * 3, "\U0001f600" * 4000, "https://127.0.0.1/x", "https://[::1]/", "ab" * 32]
_SHAPES = [[1, 256, 64, 64], [256, 64, 64], [1, 256, 256], [256, 256], [1, 1, 256, 256], [0], [2**32 - 1] * 3]

_NEEDED = {
    "sam.v1.Image": ["content"],
    "sam.v1.EmbedImageRequest": ["image"],
    "sam.v1.Prompt": ["points"],
    "sam.v1.SegmentImageRequest": ["image", "prompts"],
    "sam.v1.SegmentEverythingRequest": ["image", "points_per_side"],
}
_WITH_MORE = {"sam.v1.EmbedImageRequest", "sam.v1.SegmentEverythingRequest"}

_INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}


def requests(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Return messages of a type, any of their fields left out or set to anything of its type."""
    return st.deferred(lambda: _messages(descriptor))


def _messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    cls = GetMessageClass(descriptor)
    fields = {field.name: _values(field) for field in descriptor.fields}
    anything = st.fixed_dictionaries({}, optional=fields).map(lambda chosen: _build(cls, chosen))
    likely = _likely(descriptor, fields)
    return anything if likely is None else likely.map(lambda chosen: _build(cls, chosen)) | anything


def _likely(
    descriptor: Descriptor, fields: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]] | None:
    """Return fields of a message that a client would send, where few of all possible ones lead anywhere."""
    places, name = st.floats(-10, 50, width=32), descriptor.full_name
    if name in _NEEDED:
        needed: dict[Any, Any] = {field: fields[field].filter(bool) for field in _NEEDED[name]}
        others: dict[Any, Any] = {field: values for field, values in fields.items() if field not in needed}
        return st.fixed_dictionaries(needed, optional=others if name in _WITH_MORE else {})
    if name == "sam.v1.Tensor":
        return st.builds(_tensor, st.sampled_from(_SHAPES), st.sampled_from([1, 2]))
    if name == "sam.v1.Point":
        return st.fixed_dictionaries({"x": places, "y": places, "label": st.sampled_from([1, 2])})
    if name == "sam.v1.Box":
        far = st.floats(60, 70, width=32)
        return st.fixed_dictionaries({"x_min": places, "y_min": places, "x_max": far, "y_max": far})
    if name == "sam.v1.ImageSize":
        return st.fixed_dictionaries({"height": st.integers(1, 64), "width": st.integers(1, 64)})
    if name == "sam.v1.ImageReference":
        return st.just({"image_id": NAME})
    return None


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    one: st.SearchStrategy[Any]
    if field.message_type is not None:
        one = requests(field.message_type)
    elif field.enum_type is not None:
        one = st.sampled_from([value.number for value in field.enum_type.values]) | st.sampled_from([99, -1, 2**31 - 1])
    elif field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        one = st.floats(0, 100, width=32) | st.floats(width=32)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        one = st.booleans()
    elif field.name == "model" and field.type == FieldDescriptor.TYPE_STRING:
        one = st.sampled_from(_MODELS)
    elif field.type == FieldDescriptor.TYPE_STRING:
        one = st.sampled_from(_KNOWN) | st.text(max_size=20) | st.sampled_from(_LONG)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        one = st.just(PICTURE) | st.binary(max_size=64)
    elif field.name == "points_per_side":  # A grid of thousands of points takes seconds, and nothing else.
        one = st.integers(1, 3) | st.integers(65, 2**32 - 1)
    elif field.name in ("height", "width"):  # Nor do pictures of 100 million pixels, which are accepted.
        one = st.integers(1, 64) | st.sampled_from([0, 65_535, 65_536, 2**31, 2**32 - 1])
    else:
        low, high = _INTEGERS[field.type]
        one = st.integers(low, high)
    if field.is_repeated:
        few = st.lists(one, max_size=3)
        # Long ones of what is small: thousands of prompts of thousands of points would fill this process first.
        many = one.map(lambda value: [value] * 2000)
        return st.one_of(few, few, few, few, few, few, many) if _is_small(field) else few
    return one


def _is_small(field: FieldDescriptor) -> bool:
    if field.message_type is not None:
        return all(_is_small(inner) and not inner.is_repeated for inner in field.message_type.fields)
    return field.type not in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)


def _build(cls: type[Message], chosen: dict[str, Any]) -> Message:
    message = cls()
    for name, value in chosen.items():
        if isinstance(value, list):
            getattr(message, name).extend(value)
        elif isinstance(value, Message):
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _tensor(shape: list[int], data_type: int) -> dict[str, Any]:
    """Return the fields of a tensor whose data is as long as its shape says, if that is not too long."""
    size = math.prod(shape) * (4 if data_type == 1 else 2)
    return {"shape": shape, "data_type": data_type, "data": bytes(size) if size < 2**23 else b""}
