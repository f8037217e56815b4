"""docs/scaling.md says what is true: its commands run, and its tables are what they print."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bench.fleet import ALIAS_BYTES, EMBEDDING_BYTES, MASK_BYTES, Figures
from decoder_service.settings import DecoderSettings
from gateway.affinity.placement import RECENT_BOUND
from gateway.affinity.replicas import LOOKED_UP_EVERY_S
from gateway.settings import GatewaySettings
from sam import records
from sam.embedding import Alias, Embedding
from sam.geometry import Size
from tests.conftest import RedisServer
from tests.docs.snippets import DOCS, ROOT, run, snippets

PAGE = "scaling.md"
TEXT = (DOCS / PAGE).read_text()
DECISION = (DOCS / "decisions" / "0008-image-affinity.md").read_text()

_DIGEST, _FINGERPRINT = "0d" * 32, "ab" * 32


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What each block of the page prints, in their order."""
    return [run(snippet.text, snippet.language, ROOT).stdout for snippet in snippets(PAGE)]


def test_every_command_runs_and_the_tables_are_what_it_prints(printed: list[str]) -> None:
    """Sizes are the same; what chance has a part in is the same or, with another numpy, close to it."""
    shown = TEXT.split("<!-- fleet -->\n")[1].split("<!-- /fleet -->")[0].split()
    now = printed[0].split()
    assert len(shown) == len(now) > 200, "run 'python -m bench.fleet --table docs/scaling.md'"
    for there, here in zip(shown, now, strict=True):
        if there != here:
            one, other = (float(text.replace(",", "").rstrip("%")) for text in (there, here))
            assert one == pytest.approx(other, rel=0.3, abs=0.02), f"{there} is now {here}"


def test_what_is_said_of_other_runs(printed: list[str]) -> None:
    """Each of the other commands prints tables; without remembered masks four nodes are enough, with them thirty."""
    assert len(printed) == 3
    nodes = [re.findall(r"^\| 100,000 \| on (?:\|[^|]*){3}\| (\d+) \|", text, re.MULTILINE) for text in printed]
    assert nodes[0] == ["30"]
    assert nodes[2] == ["4"]
    assert "| 2,000 | on |" in printed[1]


def test_sizes_are_those_of_the_records(redis_server: RedisServer) -> None:
    """Records have the bytes that are counted with, and Redis takes the memory that the page says."""
    features = np.zeros((1, 256, 64, 64), np.float16)
    written = {
        "embedding": records.embedding_to_bytes(Embedding(features, _DIGEST, Size(1200, 1800), "vit_b", _FINGERPRINT)),
        "mask": records.mask_to_bytes(np.zeros((1, 256, 256), np.float32), _DIGEST, _FINGERPRINT),
        "alias": records.alias_to_bytes(Alias(_DIGEST, Size(1200, 1800), "")),
    }
    sizes = {"embedding": EMBEDDING_BYTES, "mask": MASK_BYTES, "alias": ALIAS_BYTES}
    assert {name: len(value) for name, value in written.items()} == pytest.approx(sizes, abs=8)
    with redis_server.client() as client:
        for name, value in written.items():
            client.set(f"sam:v1:{name}:{{{'a' * 32}/{_DIGEST}}}:{_FINGERPRINT}:1", value, ex=60)
        taken = sum(client.memory_usage(key) for key in client.scan_iter())
        allocator = client.info("memory")["mem_allocator"]
    if "jemalloc" in allocator:
        assert taken == pytest.approx(Figures().stored_bytes, rel=0.1)


def test_what_the_pages_name_is_the_codes() -> None:
    """Settings, files and constants that the page and the decision name are there, with the values they say."""
    settings = set(DecoderSettings.model_fields) | set(GatewaySettings.model_fields)
    named = set(re.findall(r"`((?:decoder|embedding|max)_[a-z_]+)(?:=\w+)?`", TEXT))
    assert {"decoder_affinity", "decoder_cache_bytes", "embedding_ttl_s", "max_connection_age_s"} <= named <= settings
    assert f"more than {RECENT_BOUND - 1:.0%} above its share".replace("%", " %") in TEXT
    assert f"| **{RECENT_BOUND}** |" in DECISION
    assert LOOKED_UP_EVERY_S == 5
    for folder, text in ((DOCS, TEXT), (DOCS / "decisions", DECISION)):
        for target in re.findall(r"\]\(([^)#\s]+)\)", text):
            assert (folder / target).exists(), target
    assert (ROOT / "tests" / "bench" / "test_fleet.py").exists()


def test_the_figures_follow_from_those_that_were_measured() -> None:
    """The model's defaults are what the page derives them from."""
    figures = Figures()
    assert figures.decode_s == pytest.approx(2 / 89.2, rel=0.01)
    assert figures.gateway_s == pytest.approx(2 / 68.0 - 2 / 89.2, rel=0.02)
    assert figures.encode_s == pytest.approx((5.6 + 6.1) / 2 / 2, rel=0.02)
    assert figures.gpu_first_s + 7 * figures.gpu_next_s == pytest.approx(8 / 90, rel=0.01)
    performance = (DOCS / "performance.md").read_text()
    assert "89.2 clicks/s" in performance
    assert "68.0;" in performance
