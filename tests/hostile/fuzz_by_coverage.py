"""Feeds one parser with what atheris finds by coverage: `python -m tests.hostile.fuzz_by_coverage TARGET OPTION...`.

The options are libFuzzer's, such as `-max_total_time=60`, and folders with examples to begin with.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["sam.records", "sam.tensors", "gateway.arrays", "google.protobuf"]):
    from tests.hostile.fuzz_targets import TARGETS


def main() -> None:
    """Run until libFuzzer's options say that it is enough; a parser's fault ends it with an exit status."""
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], lambda data: (TARGETS[name](data), None)[1])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
