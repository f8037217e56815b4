"""Hours of everything at once: memory, files and threads stay what they were."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment, deployment
from tests.faults.history import History
from tests.faults.load import steadily
from tests.faults.mixture import Mixture
from tests.faults.replica import Usage

SLOPE_MIB_PER_MIN = 1.0
SAMPLE_S = 2.0
CHUNK_S = 60.0
"""A history is checked and forgotten each so many seconds: the soak's own memory has to stay flat, too."""


@pytest.mark.soak
def test_f25_hours_of_mixed_load_leave_memory_files_and_threads_flat(tmp_path: Path, report: Report) -> None:
    """With clients that crash and time out among the others, no process grows, and no mask is wrong."""
    duration_s = float(os.environ.get("DURATION") or 600)
    warm_up_s = min(120.0, duration_s / 4)
    samples: dict[str, list[tuple[float, Usage]]] = {}
    total = failed = 0
    # Small caches, so that they are full before the measuring begins.
    environment = {"SAMOVAR_DECODER_CACHE_BYTES": str(32 * 2**20), "SAMOVAR_LOG_LEVEL": "info"}
    with deployment(tmp_path, gateways=2, environment=environment) as running:
        with running.redis.client() as client:
            client.config_set("maxmemory", "64mb")
            client.config_set("maxmemory-policy", "allkeys-lru")
        started = time.monotonic()
        while (left := duration_s - (time.monotonic() - started)) > 1:
            history = History()
            asyncio.run(_mixed(running, history, min(CHUNK_S, left), samples, started))
            assert_right(history)
            total += len(history)
            failed += sum(request.answer.status == "INTERNAL" for request in history)
        assert all(replica.alive for replica in running.replicas)
    for name, taken in samples.items():
        warm = [(at, usage) for at, usage in taken if at >= warm_up_s]
        slope = _slope([at / 60 for at, _ in warm], [usage.rss_mib for _, usage in warm])
        fds = _ends([usage.fds for _, usage in warm])
        threads = _ends([usage.threads for _, usage in warm])
        report.row(
            "F25",
            injected=f"{duration_s:.0f} s of mixed load, crashing and timing-out clients; {name}",
            counted=f"slope of RSS after {warm_up_s:.0f} s, least squares; files; threads, first and last fifth",
            required=f"below {SLOPE_MIB_PER_MIN:.0f} MiB/min; flat (+ 20); flat (+ 4)",
            seen=f"{slope:.2f} MiB/min ({warm[0][1].rss_mib:.0f} to {warm[-1][1].rss_mib:.0f} MiB); {fds[0]:.0f} to "
            f"{fds[1]:.0f}; {threads[0]:.0f} to {threads[1]:.0f}",
            held=slope < SLOPE_MIB_PER_MIN and fds[1] <= fds[0] + 20 and threads[1] <= threads[0] + 4,
        )
    report.row(
        "F25",
        injected=f"{duration_s:.0f} s of mixed load; all tiers",
        counted="wrong masks; answers 500",
        required="0; 0",
        seen=f"0 of {total}; {failed}",
        held=failed == 0 and total > 0,
    )
    report.assert_held()


async def _mixed(
    running: Deployment,
    history: History,
    seconds: float,
    samples: dict[str, list[tuple[float, Usage]]],
    started: float,
) -> None:
    """Load everything for some seconds, and write down what each process holds."""
    async with HttpClient(history, running.urls) as http, HttpClient(history, running.urls, patience_s=0.03) as hasty:
        done = asyncio.Event()
        seed = int(time.monotonic())
        # A history knows no names that were given before it began.
        mixture = Mixture(http, "f25", pictures=40, seed=seed, ids=f"f25-{seed}")
        fresh = Mixture(http, f"f25-{seed}", by_name=0.0, new=1.0, seed=seed)
        rude = Mixture(hasty, "f25", pictures=40, seed=seed, ids=f"f25-{seed}-rude")
        loads = [
            asyncio.create_task(steadily(20, mixture, until=done)),
            asyncio.create_task(steadily(1, fresh, until=done)),
            asyncio.create_task(steadily(2, rude, until=done)),
            asyncio.create_task(_crash(running, done)),
        ]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for replica in running.replicas:
                name = f"{replica.module} {replica.folder.name[-1]}"
                samples.setdefault(name, []).append((time.monotonic() - started, replica.usage()))
            await asyncio.sleep(SAMPLE_S)
        done.set()
        await asyncio.gather(*loads)


async def _crash(running: Deployment, done: asyncio.Event) -> None:
    """Be a client that ends in the middle of what it sends, or of what it is sent, again and again."""
    rng = random.Random(0)
    while not done.is_set():
        gateway = running.gateways[rng.randrange(len(running.gateways))]
        with contextlib.suppress(OSError), socket.create_connection((gateway.host, gateway.port), timeout=1) as rude:
            head = f"POST /sam/segment_image HTTP/1.1\r\nHost: {gateway.host}\r\nContent-Type: application/json\r\n"
            rude.setblocking(False)
            rude.send(f"{head}Content-Length: {rng.randrange(10, 10_000)}\r\n\r\n{{".encode())
        await asyncio.sleep(0.5)


def _slope(x: list[float], y: list[float]) -> float:
    """Return the slope of a line through points, by least squares."""
    return float(np.polyfit(x, y, 1)[0])


def _ends(values: list[int]) -> tuple[float, float]:
    """Return the medians of the first and of the last fifth."""
    fifth = max(1, len(values) // 5)
    return float(np.median(values[:fifth])), float(np.median(values[-fifth:]))
