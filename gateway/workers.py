"""The threads that parse and render, so that the event loop only waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

OFFLOAD_BYTES = 64 * 2**10
"""From this many bytes on, a body is handled in a thread: about half a millisecond of the event loop's time."""


class Workers:
    """A few threads: each may hold a picture's masks unpacked, so that their number bounds the memory in use."""

    def __init__(self, threads: int) -> None:
        """Start with `threads` threads; 0 for one each core."""
        self._executor = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="gateway")

    async def run(self, large: bool, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that only computes: in a thread if there is much to do, at once otherwise."""
        if not large:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def close(self) -> None:
        """Drop what has not begun; what has ends by itself soon."""
        self._executor.shutdown(wait=False, cancel_futures=True)
