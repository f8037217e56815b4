"""Threads that share the pieces of a computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

Work = Callable[[], None]


class Crew:
    """A few threads. One caller at a time.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    def run(self, pieces: Sequence[Work]) -> None:
        """Do all pieces, in any thread and order, and return when all are done.

        Whoever has ended one begins the next. A future for each would cost a hundredth and more of what a piece takes.
        """
        waiting = iter(pieces)  # of a sequence, which is safe to share between threads

        def work() -> None:
            for piece in waiting:
                piece()

        for done in [self._pool.submit(work) for _ in range(self._threads)]:
            done.result()
