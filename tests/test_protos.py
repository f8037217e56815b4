"""The committed generated code is that of the committed protos, and the protos are a document."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "protos" / "sam" / "v1").glob("*.proto"))


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    if spec is None or spec.loader is None:
        pytest.fail("protos/generate.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_code_is_current(tmp_path: Path) -> None:
    """Generating again gives the committed files, byte for byte."""
    _generator().generate(tmp_path)
    made = {file.name: file.read_bytes() for file in (tmp_path / "sam" / "v1").iterdir()}
    kept = {file.name: file.read_bytes() for file in (ROOT / "sam" / "v1").iterdir() if file.is_file()}
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == []


def test_every_element_of_the_contract_is_commented(tmp_path: Path) -> None:
    """Each service, method, message, field, enum and value says what it is."""
    out = tmp_path / "set"
    well_known = _generator().WELL_KNOWN
    arguments = ["protoc", f"-I{ROOT / 'protos'}", f"-I{well_known}", "--include_source_info"]
    assert protoc.main([*arguments, f"--descriptor_set_out={out}", *map(str, FILES)]) == 0
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    assert len(files) == len(FILES)
    kinds = {4: "message", 5: "enum", 6: "service", 2: "member"}
    for file in files:
        for location in file.source_code_info.location:
            path = location.path
            # Paths of elements alternate field numbers of the descriptor and indices; the last pair names the kind.
            if len(path) in (2, 4) and path[-2] in kinds and path[0] in (4, 5, 6):
                assert location.leading_comments.strip(), f"{file.name}: no comment at {list(path)}"
