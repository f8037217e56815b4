"""Write docs/grpc.md from protos/ and their comments; a test holds the page to them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PAGE = ROOT / "docs" / "grpc.md"

_INTRODUCTION = """# gRPC reference

The contract of the services, package `sam.v1`, as [protos/sam/v1](../protos/sam/v1) states it. This page is written
from those files by `make docs`; [clients.md](clients.md) shows how to call them.

Messages may have 64 MiB. gRPC's own limit for what is received is 4 MiB, less than an embedding in float32: raise it.
Health is `grpc.health.v1` under the service's full name; reflection is on.
"""

# The numbers by which a path of descriptor.proto names the parts of a file.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _ONEOFS, _VALUES, _METHODS = 2, 8, 2, 2

_Field = pb.FieldDescriptorProto
_LOCAL = ".sam.v1."


def described() -> list[pb.FileDescriptorProto]:
    """Return the files of the contract, services first, with their comments.

    Raises:
        RuntimeError: the compiler refused a file; its messages are on standard error.
    """
    files = sorted((PROTOS / "sam" / "v1").glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, *map(str, files)]) != 0:
            raise RuntimeError("protoc failed")
        found = pb.FileDescriptorSet.FromString(out.read_bytes()).file
    # The record is what lies in the store, not what travels.
    travelling = [file for file in found if not file.name.endswith("/record.proto")]
    return sorted(travelling, key=lambda file: (not file.service, file.name))


def render(files: list[pb.FileDescriptorProto]) -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for file in files:
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for index, service in enumerate(file.service):
            parts += _service(service, (_SERVICES, index), comments)
        for index, message in enumerate(file.message_type):
            parts += _message(message, (_MESSAGES, index), comments)
        for index, enum in enumerate(file.enum_type):
            parts += _enum(enum, (_ENUMS, index), comments)
    return "\n".join(parts)


_Comments = dict[tuple[int, ...], str]


def _service(service: pb.ServiceDescriptorProto, path: tuple[int, ...], comments: _Comments) -> Iterator[str]:
    yield f"## {service.name}\n"
    yield _paragraphs(comments.get(path, ""))
    for index, method in enumerate(service.method):
        yield f"### {service.name}.{method.name}\n"
        stream = "a stream of " if method.server_streaming else ""
        yield f"{_link(method.input_type)} → {stream}{_link(method.output_type)}\n"
        yield _paragraphs(comments.get((*path, _METHODS, index), ""))


def _message(message: pb.DescriptorProto, path: tuple[int, ...], comments: _Comments) -> Iterator[str]:
    yield f"### {message.name}\n"
    yield _paragraphs(comments.get(path, ""))
    for index, oneof in enumerate(message.oneof_decl):
        members = [field for field in message.field if field.HasField("oneof_index") and field.oneof_index == index]
        # proto3 declares a oneof of its own for every optional field.
        if not members[0].proto3_optional:
            names = ", ".join(f"`{field.name}`" for field in members)
            yield f"`{oneof.name}` is one of {names}. {_paragraphs(comments.get((*path, _ONEOFS, index), ''))}"
    if message.field:
        yield "| field | number | type | meaning |\n|---|---|---|---|"
        for index, field in enumerate(message.field):
            meaning = _cell(comments.get((*path, _FIELDS, index), ""))
            yield f"| `{field.name}` | {field.number} | {_type(field)} | {meaning} |"
        yield ""


def _enum(enum: pb.EnumDescriptorProto, path: tuple[int, ...], comments: _Comments) -> Iterator[str]:
    yield f"### {enum.name}\n"
    yield _paragraphs(comments.get(path, ""))
    yield "| value | number | meaning |\n|---|---|---|"
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_cell(comments.get((*path, _VALUES, index), ''))} |"
    yield ""


def _type(field: _Field) -> str:
    if field.type in (_Field.TYPE_MESSAGE, _Field.TYPE_ENUM):
        name = _link(field.type_name)
    else:
        name = _Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == _Field.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(full_name: str) -> str:
    name = full_name.rsplit(".", 1)[1]
    if not full_name.startswith(_LOCAL):
        return f"`{full_name.removeprefix('.')}`"
    return f"[{name}](#{name.lower()})"


def _plain(comment: str) -> str:
    """Return a comment without the brackets by which one names another element."""
    return re.sub(r"\[(\w+)\]\[[\w.]+\]", r"`\1`", comment)


def _paragraphs(comment: str) -> str:
    """Return a comment as Markdown: its paragraphs joined, its lists kept."""
    lines = [line.removeprefix(" ") for line in _plain(comment).strip("\n").split("\n")]
    blocks = "\n".join(line.rstrip() for line in lines).strip().split("\n\n")
    return "\n\n".join(block if "- " in block else " ".join(block.split()) for block in blocks) + "\n"


def _cell(comment: str) -> str:
    return " ".join(_plain(comment).split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(described()))
