"""Threads that compute side by side, each with torch confined to itself.

Torch's own threads meet after every operation, some sixty times a prompt. On a machine that has other work to do, each
of these meetings waits until all of them have been given a core: measured here, one prompt took 500 ms instead of 20.
A team meets four times a prompt, and takes over what a member has not begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def solo_executor(threads: int, name: str) -> ThreadPoolExecutor:
    """Start threads in each of which torch computes alone.

    Torch's setting of its threads belongs to the calling thread, but is also what threads that begin later inherit, so
    it is put back; other threads that begin just now may be caught by it and compute alone as well.
    """
    before = torch.get_num_threads()
    started = threading.Barrier(threads + 1)

    def begin() -> None:
        # Asking first makes torch initialise this thread, which would otherwise undo the setting later.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
    for _ in range(threads):
        executor.submit(begin)
    started.wait()
    torch.set_num_threads(before)
    return executor


class Team:
    """The threads that compute one call: the caller's own and helpers, which all callers share.

    A caller alone gets helped; where the helpers are busy with others, each caller does its own work.

    Args:
        threads: into how many pieces the work of one call is cut.
        helpers: how many threads help; by default one for each piece but the caller's.
    """

    def __init__(self, threads: int = 1, helpers: int | None = None) -> None:
        self.threads = threads
        helpers = threads - 1 if helpers is None else helpers
        self._helpers = solo_executor(helpers, "decode-helper") if helpers else None
        self._callers = 0
        self._lock = threading.Lock()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Count the caller in while it computes: helpers help while there is one caller, and are in the way of two."""
        with self._lock:
            self._callers += 1
        try:
            yield
        finally:
            with self._lock:
                self._callers -= 1

    def map(self, work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Return `work` of every item, in inference mode, computed side by side if that is of use."""
        if self._helpers is None or len(items) <= 1 or self._callers > 1:
            return [work(item) for item in items]

        def help_with(item: _Item) -> _Result:
            with torch.inference_mode():
                return work(item)

        others = [self._helpers.submit(help_with, item) for item in items[1:]]
        results = [work(items[0])]
        for item, other in zip(items[1:], others, strict=True):
            # A helper that has not begun is busy with another call or without a core: it is not waited for.
            results.append(work(item) if other.cancel() else other.result())
        return results

    def close(self) -> None:
        """Let the helpers go."""
        if self._helpers is not None:
            self._helpers.shutdown(wait=True, cancel_futures=True)
