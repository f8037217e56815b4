"""People at the gateway: clicks on known pictures, by name or with the picture, and on new ones."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from tests.compose.engine import CommandFailed
from tests.faults.clients import HttpClient
from tests.faults.history import History, Request
from tests.faults.load import steadily
from tests.faults.pictures import Picture, picture

_T = TypeVar("_T")

RATE = 10.0
"""Requests a second: what two cores that run all the containers besides can bear with ease."""

_KNOWN = 8
_TRIES = 5
# Of every ten requests: two about a new picture, three that bring a known one along, five by name alone.
_NEW, _BROUGHT = 2, 5


class Traffic:
    """Asks the gateway at a fixed rate while something is done to the containers.

    Attributes:
        history: every request so far.
    """

    def __init__(self, client: HttpClient) -> None:
        self.history = client.history
        self._client = client
        self._number = itertools.count()

    async def name_pictures(self) -> None:
        """Embed the known pictures under their names, as must be done again after Redis has lost them.

        Raises:
            CommandFailed: one is not found by its name afterwards.
        """
        for shown in map(known, range(_KNOWN)):
            for _ in range(_TRIES):
                await self._client.embed(shown, shown.name)
                named = await self._client.segment(None, shown.name)
                if named.ok:
                    break
            else:
                raise CommandFailed(f"{shown} is not found by its name: {named}")

    async def during(self, action: Callable[[], _T], *, with_pictures_only: bool = False) -> tuple[_T, list[Request]]:
        """Ask while `action` runs in a thread; return what it returns, and the requests.

        Args:
            action: what is done.
            with_pictures_only: whether every request brings its picture along, as those must that Redis may forget.
        """
        done = asyncio.Event()
        asking = asyncio.ensure_future(steadily(RATE, lambda _: self._ask(with_pictures_only), until=done))
        try:
            returned = await asyncio.to_thread(action)
        finally:
            done.set()
            requests = await asking
        return returned, requests

    async def probe_names(self, done: asyncio.Event) -> list[Request]:
        """Name a picture and ask for it by that name, over and over; return the requests by name alone."""
        asked = []
        shown = picture("probe")
        while not done.is_set():
            await self._client.segment(shown, "probe")
            asked.append(await self._client.segment(None, "probe"))
            await asyncio.sleep(0.05)
        return asked

    async def _ask(self, with_pictures_only: bool) -> Request:
        number = next(self._number)
        kind, shown = number % 10, known(number // 10 % _KNOWN)
        if kind < _NEW:
            # Made in a thread: it costs as much as ten requests.
            new = await asyncio.to_thread(picture, f"new {number}")
            return await self._client.segment(new)
        if kind < _BROUGHT or with_pictures_only:
            return await self._client.segment(shown, shown.name)
        return await self._client.segment(None, shown.name)


def known(number: int) -> Picture:
    """Return a picture that everybody clicks on."""
    return picture(f"known {number}")


def at(request: Request) -> float:
    """Return when a request was sent, in seconds since the epoch."""
    return request.invoked + time.time() - time.monotonic()


@asynccontextmanager
async def traffic(url: str) -> AsyncIterator[Traffic]:
    """Open the gate."""
    async with HttpClient(History(), [url]) as client:
        yield Traffic(client)
