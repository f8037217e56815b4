"""Running services until a signal, and stopping them in order."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import structlog

from sam.tracing import stop_tracing

log = structlog.get_logger("sam.lifecycle")


SAME_SIGNAL_S = 0.1
"""Two signals closer than this are one: `make` and `timeout` pass on what the whole process group gets anyway. Nobody
presses Ctrl-C twice that fast."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

WAITING_THREADS = 32
"""Threads for what blocks: names looked up, records written, pictures hashed. They begin when they are needed."""


def run_until_signalled(services: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """Enter `services`, wait for SIGTERM or SIGINT, and leave it again, which drains.

    A signal that comes while it is still being entered gives that up. A second signal ends the process at once. An
    exception from entering it is raised here.
    """
    # Of services alone: commands that import this room for something else run where there is no uvloop.
    import uvloop

    try:
        # The event loop itself was a fifth of what a click costs beside its mask: uvloop's takes half of that.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(services))
    finally:
        stop_tracing()


async def _run(services: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    signalled = asyncio.Event()
    signalled_at = 0.0
    entered = False
    loop = asyncio.get_running_loop()
    # asyncio's own half dozen would be full of names being looked up as soon as a DNS server does not answer, and what
    # else runs in them would wait for that.
    loop.set_default_executor(ThreadPoolExecutor(WAITING_THREADS, thread_name_prefix="wait"))
    main = asyncio.current_task()

    def on_signal(number: int) -> None:
        nonlocal signalled_at
        if signalled.is_set():
            if loop.time() - signalled_at < SAME_SIGNAL_S:
                return
            log.warning("second signal: stopping at once")
            # Not by cancelling: what drains would be left one step at a time, and a thread that computes is waited for
            # even after that. Nothing needs a clean-up that a crash would not have left undone as well.
            os._exit(128 + number)
        signalled.set()
        signalled_at = loop.time()
        if not entered and main is not None:
            main.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with services():
            entered = True
            # What is there by now stays: the collector need not walk over all of torch while callers wait.
            gc.freeze()
            await signalled.wait()
            log.info("stopping: finishing accepted work")
    except asyncio.CancelledError:
        if not signalled.is_set():
            raise


@asynccontextmanager
async def closing(*closers: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call every closer on exit, the last first, whatever the others raise."""
    try:
        yield
    finally:
        for close in reversed(closers):
            try:
                await close()
            except Exception:
                log.exception("failed to close")


def let_waiting_threads_sleep() -> None:
    """Keep torch's threads from spinning while they wait for one another. Of use only before torch is imported.

    Where other work shares the cores, spinning made an embedding three times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def give_memory_back(at_least: int) -> None:
    """Have blocks of so many bytes and more go back to the system when they are freed, where there is glibc.

    By itself it keeps them, in an arena for each of many threads: under mixed load an encoder held 380 to 480 MiB, a
    decoder 360 to 430, and now both some 320. Each such block costs the time in which the system clears it, some 0.1 to
    0.4 ms a MiB; smaller ones are kept up to as many bytes in each arena, since asking for a threshold makes glibc keep
    no more than 128 KiB otherwise.

    Source: mallopt(3), `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`. Whoever sets `MALLOC_MMAP_THRESHOLD_` decides for
    themselves.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(AttributeError, OSError, TypeError):
            for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
                ctypes.CDLL(None).mallopt(threshold, at_least)
