"""Running services until a signal, and stopping them in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog

log = structlog.get_logger("sam.lifecycle")


def run_until_signalled(services: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """Enter `services`, wait for SIGTERM or SIGINT, and leave it again, which drains.

    A second signal stops at once. An exception from entering it is raised here.
    """
    asyncio.run(_run(services))


async def _run(services: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()

    def on_signal() -> None:
        if signalled.is_set() and main is not None:
            log.warning("second signal: stopping at once")
            main.cancel()
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        async with services():
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
