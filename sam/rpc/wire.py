"""A look through a large message before it is parsed.

An element takes two bytes on the wire and tens in memory: 64 MiB of empty prompts became 1.5 GiB, and 4 s in which
nobody else was served. Looking through it ends at the first list that is longer than any may be.

Source of the format: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

LARGE = 2**20
"""The bytes of a message from which on it is looked through. What is smaller becomes tens of MiB at most."""

MAX_ELEMENTS = 4096
"""The longest list in any request: a grid of 64 x 64 points."""

MAX_PARTS = 300_000
"""The most elements of all lists together: by default there may be 256 prompts of 1024 points."""

_VARINT, _FIXED64, _DELIMITED, _BEGIN_GROUP, _END_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5
_TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


class TooLong(NamedTuple):
    """What a message has too much of.

    Attributes:
        field: the name of the list.
        at_most: how many elements there may be.
    """

    field: str
    at_most: int


def find_too_long(data: bytes, kind: Descriptor) -> TooLong | None:
    """Return the first list of a message that is too long, if there is one.

    What cannot be parsed is looked through as far as it can be; parsing will say what is wrong with it.

    Args:
        data: the message on the wire.
        kind: its type.
    """
    parts = 0
    ranges = [(kind, 0, len(data))]
    while ranges:
        kind, at, end = ranges.pop()
        lists, counts = _lists_of(kind), dict[int, int]()
        while at < end:
            start, length = at, 0
            tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire == _DELIMITED:
                length, at = (data[at], at + 1) if at < end and data[at] < 0x80 else _varint(data, at)
            elif wire == _VARINT:
                _, at = _varint(data, at)
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            elif wire in (_BEGIN_GROUP, _END_GROUP):
                continue  # No message of ours has groups; what is in one is taken for what it looks like.
            else:
                break
            found = lists.get(number)
            if found is not None:
                many = 1
                if found.inner is not None and length:
                    ranges.append((found.inner, at, min(at + length, end)))
                elif found.packed and wire == _DELIMITED:
                    many = length  # of a byte each at least
                elif wire == _DELIMITED and at - start == 2:
                    # What follows is mostly alike: points, or nothing.
                    head = data[start:at]
                    while at + length < end and data[at + length : at + length + 2] == head and many <= MAX_ELEMENTS:
                        at += length + 2
                        many += 1
                parts += many
                counts[number] = counts.get(number, 0) + many
                if counts[number] > MAX_ELEMENTS:
                    return TooLong(found.name, MAX_ELEMENTS)
                if parts > MAX_PARTS:
                    return TooLong(found.name, MAX_PARTS)
            at += length
    return None


class _List(NamedTuple):
    name: str
    inner: Descriptor | None  # of elements that have lists themselves
    packed: bool


@cache
def _lists_of(kind: Descriptor) -> dict[int, _List]:
    """Return, by number, what a message can have many of on the wire: lists, and messages, which are merged."""
    return {
        field.number: _List(
            field.name,
            field.message_type if field.message_type is not None and _lists_of(field.message_type) else None,
            field.is_repeated and field.message_type is None and field.type not in _TEXT,
        )
        for field in kind.fields
        if field.is_repeated or field.message_type is not None
    }


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number; return it and where it ends. Where there is none, that is beyond the message."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, len(data) + 1
