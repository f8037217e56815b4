"""How large a fleet has to be, and what it does to Redis: `python -m bench.fleet [--json] [--table docs/scaling.md]`.

Sizes follow from the figures below by arithmetic; reads, waits and balance come out of a simulation
(`bench.fleet_model`) that places clicks by the gateway's own code. Each figure is a flag, such as `--decode-s 0.02`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.fleet_model import Decoders, Encoders, People, simulate_decoders, simulate_encoders
from tests.faults.table import write_section

EMBEDDING_BYTES = 2_097_273
"""A stored embedding as it travels: 2 MiB of float16, and its header."""

ALIAS_BYTES = 56
"""What an image_id is bound to, which every click reads."""

MASK_BYTES = 262_230
"""A remembered mask, which a click writes unless it says `use_mask_input_cache: false`."""


def _figure(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Figures:
    """What the sizes follow from."""

    decode_s: float = _figure(0.0224, "how long a click keeps a core of a decoder, in seconds")
    load_s: float = _figure(0.010, "how long reading and preparing an embedding does so, in seconds")
    decoder_cores: int = _figure(2, "the cores of one decoder")
    decoder_keeps: int = _figure(256, "the pictures that one decoder keeps: decoder_cache_bytes / 2 MiB")
    gateway_s: float = _figure(0.0070, "how long a click keeps a core of a gateway, in seconds")
    encode_s: float = _figure(2.9, "how long an encoder on two cores takes for a picture, in seconds")
    gpu_first_s: float = _figure(0.014, "how long an encoder on a GPU takes for a picture alone, in seconds")
    gpu_next_s: float = _figure(0.0107, "how much longer each further picture of a batch makes it, in seconds")
    remembered: float = _figure(1.0, "which part of the clicks has its mask remembered, from 0 to 1")
    stored_bytes: int = _figure(2_976_039, "what a picture takes of Redis' memory: embedding, mask, name, in bytes")
    kept_s: float = _figure(3600, "for how long a picture is to be found in Redis, in seconds")
    redis_bytes_per_s: float = _figure(1e9, "what one Redis sends or takes, in bytes a second")
    busy: float = _figure(0.6, "which part of their time cores are to work, from 0 to 1")
    pause_s: float = _figure(2.0, "the mean time between two clicks of a person on one picture, in seconds")
    session_s: float = _figure(40.0, "the mean time that a person stays with a picture, in seconds")
    openers: float = _figure(3.0, "how many people open one picture, on average")
    within_s: float = _figure(120.0, "within how many seconds of the first the others open it")


@dataclass(frozen=True)
class Fleet:
    """What a number of clicks a second needs, by arithmetic."""

    clicks_per_s: float
    new_per_s: float
    decoders: int
    gateways: int
    encoders: int
    gpu_encoders: int
    redis_tib: float


@dataclass(frozen=True)
class Outcome:
    """What the simulation saw, with affinity and without."""

    affinity: bool
    reads_per_click: float
    redis_out_gb_per_s: float
    redis_in_gb_per_s: float
    redis_nodes: int
    busy: float
    wait_p99_ms: float
    busiest: float


def people_of(figures: Figures) -> People:
    """Return how pictures are clicked on."""
    return People(figures.pause_s, figures.session_s, figures.openers, figures.within_s)


def size(figures: Figures, clicks_per_s: float) -> Fleet:
    """Return the fleet for so many clicks a second."""
    new_per_s = clicks_per_s / people_of(figures).clicks_per_picture
    cpu, gpu = encoders_of(figures, 1)
    return Fleet(
        clicks_per_s,
        new_per_s,
        _count(clicks_per_s * figures.decode_s / figures.decoder_cores, figures.busy),
        _count(clicks_per_s * figures.gateway_s, figures.busy),
        _count(new_per_s / cpu.pictures_per_s, figures.busy),
        _count(new_per_s / gpu.pictures_per_s, figures.busy),
        new_per_s * figures.kept_s * figures.stored_bytes / 2**40,
    )


def encoders_of(figures: Figures, count: int) -> tuple[Encoders, Encoders]:
    """Return encoders on two cores, which gain nothing by batches, and encoders on a GPU."""
    return (
        Encoders(count, figures.encode_s, figures.encode_s, batch=1),
        Encoders(count, figures.gpu_first_s, figures.gpu_next_s),
    )


def run(figures: Figures, fleet: Fleet, *, affinity: bool, sample: int, seed: int) -> Outcome:
    """Simulate a sample of the decoders of a fleet."""
    decoders = Decoders(
        fleet.decoders,
        figures.decoder_cores,
        figures.decode_s,
        figures.load_s,
        figures.decoder_keeps,
        affinity,
        fleet.gateways,
    )
    seen = simulate_decoders(people_of(figures), decoders, fleet.clicks_per_s, sample=sample, seed=seed)
    sent = fleet.clicks_per_s * (seen.reads_per_click * EMBEDDING_BYTES + ALIAS_BYTES)
    taken = fleet.clicks_per_s * figures.remembered * MASK_BYTES + fleet.new_per_s * EMBEDDING_BYTES
    return Outcome(
        affinity,
        seen.reads_per_click,
        sent / 1e9,
        taken / 1e9,
        math.ceil(max(sent, taken) / figures.redis_bytes_per_s),
        seen.busy,
        float(np.percentile(seen.waits_s, 99)) * 1000,
        seen.busiest,
    )


def encoders_table(figures: Figures) -> str:
    """Return how long new pictures take at an encoder that is as busy as it is to be, in Markdown."""
    people = people_of(figures)
    lines = [
        "| an encoder | new pictures/s at most | median, s | p99, s |",
        "|---|---|---|---|",
    ]
    for name, one in zip(("on two cores", "on a GPU"), encoders_of(figures, 1), strict=True):
        clicks_per_s = figures.busy * one.pictures_per_s * people.clicks_per_picture
        median, late = np.percentile(simulate_encoders(people, one, clicks_per_s), [50, 99])
        lines.append(f"| {name} | {one.pictures_per_s:.2f} | {median:.3g} | {late:.3g} |")
    return "\n".join(lines)


def tables(figures: Figures, fleets: Sequence[Fleet], outcomes: Sequence[Sequence[Outcome]]) -> str:
    """Return what is needed, and what the simulation saw, in Markdown."""
    sizes = [
        "| clicks/s | decoders | gateways | new pictures/s | encoders on two cores | on a GPU | Redis, TiB |",
        "|---|---|---|---|---|---|---|",
    ]
    sizes += [
        f"| {one.clicks_per_s:,.0f} | {one.decoders:,} | {one.gateways:,} | {one.new_per_s:,.1f} | {one.encoders:,} "
        f"| {one.gpu_encoders:,} | {one.redis_tib:,.2f} |"
        for one in fleets
    ]
    seen = [
        "| clicks/s | affinity | embeddings read for a click | out of Redis, GB/s | into it, GB/s | Redis nodes "
        "| cores busy | p99 wait for a core, ms | the busiest decoder, of the mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    seen += [
        f"| {fleet.clicks_per_s:,.0f} | {'on' if one.affinity else 'off'} | {one.reads_per_click:.3f} "
        f"| {one.redis_out_gb_per_s:,.2f} | {one.redis_in_gb_per_s:,.2f} | {one.redis_nodes:,} | {one.busy:.0%} "
        f"| {one.wait_p99_ms:.0f} | {one.busiest:.2f} |"
        for fleet, pair in zip(fleets, outcomes, strict=True)
        for one in pair
    ]
    return "\n\n".join(["\n".join(sizes), "\n".join(seen), encoders_table(figures)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, prog="python -m bench.fleet"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--table", metavar="FILE", type=Path, help="a Markdown file to write the tables into")
    parser.add_argument("--seed", type=int, default=0, help="of chance")
    parser.add_argument("--sample", type=int, default=8, help="how many decoders of each fleet are simulated, at most")
    parser.add_argument(
        "--clicks", type=float, nargs="+", default=[100, 1_000, 10_000, 100_000], help="clicks a second"
    )
    for one in fields(Figures):
        flag = "--" + one.name.replace("_", "-")
        parser.add_argument(flag, type=type(one.default), default=one.default, help=one.metadata["help"])
    chosen = parser.parse_args(arguments)
    figures = Figures(**{one.name: getattr(chosen, one.name) for one in fields(Figures)})
    fleets = [size(figures, clicks) for clicks in chosen.clicks]
    outcomes = [
        [run(figures, one, affinity=affinity, sample=chosen.sample, seed=chosen.seed) for affinity in (False, True)]
        for one in fleets
    ]
    if chosen.json:
        rows = [
            {**asdict(fleet), "outcomes": [asdict(seen) for seen in pair]}
            for fleet, pair in zip(fleets, outcomes, strict=True)
        ]
        print(json.dumps({"figures": asdict(figures), "seed": chosen.seed, "fleets": rows}))
        return
    printed = tables(figures, fleets, outcomes)
    print(printed)
    if chosen.table:
        write_section(chosen.table, "fleet", f"\n{printed}\n\n")


def _count(work: float, busy: float) -> int:
    return max(1, math.ceil(work / busy))


if __name__ == "__main__":
    main()
