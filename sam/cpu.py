"""What the CPU is and how much of it this process may use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def has_fast_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX).

    Elsewhere torch computes bfloat16 by way of float32, which is slower than float32 itself.
    """
    # An older torch cannot be asked: float32 is right there as well, only slower.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def available_cores(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Return how many cores this process may use: its affinity, and its container's quota rounded up.

    Torch knows neither and starts a thread for each core of the machine; in a container limited to two of them, those
    threads wait for one another.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup_limit.read_text().split()
    except (OSError, ValueError):
        return cores
    if not quota.isdecimal():
        return cores
    return max(1, min(cores, -(-int(quota) // int(period))))
