"""Writes the table of metrics in docs/operating.md from the metrics themselves; a test holds the page to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from prometheus_client.metrics import MetricWrapperBase

import decoder_service.metrics
import encoder_service.metrics
import gateway.metrics
import sam.embedding_store.metrics
import sam.metrics
import sam.rpc.metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operating.md"

_SERVICES = {
    gateway.metrics: "gateway",
    encoder_service.metrics: "encoder",
    decoder_service.metrics: "decoder",
    sam.embedding_store.metrics: "encoder, decoder",
    sam.rpc.metrics: "encoder, decoder",
    sam.metrics: "all",
}
_START, _END = "<!-- metrics -->\n", "<!-- /metrics -->"


def table() -> str:
    """Return all metrics with their labels, who tells them, and what they mean."""
    rows = ["| metric | kind | labels | told by | meaning |", "|---|---|---|---|---|"]
    for module, services in _SERVICES.items():
        for metric in _metrics_of(module):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append(f"| `{name}` | {family.type} | {labels} | {services} | {family.documentation} |")
    return "\n".join(rows)


def render(page: str) -> str:
    """Return the page with its table made anew."""
    before, _, rest = page.partition(_START)
    _, _, after = rest.partition(_END)
    return f"{before}{_START}{table()}\n{_END}{after}"


def _metrics_of(module: ModuleType) -> Iterator[MetricWrapperBase]:
    return (value for value in vars(module).values() if isinstance(value, MetricWrapperBase))


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
