"""What happens while no replica of a service can be reached: for a moment requests wait, then they are told."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import structlog

GRACE_S = 2.5
"""How long a service may be away unnoticed: longer than a channel pauses before it connects again (`sam.rpc.channel`),
which is how long the replica that is left can look lost, after its own restart, while the last other one goes."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.4

log = structlog.get_logger("gateway")


class Absence:
    """Whether a service is away for longer than a moment.

    Who meets a service that has just gone waits, at most `GRACE_S`. Once somebody has waited in vain nobody waits any
    more, and requests fail at once until one has been answered again: a service that is not there must not fill the
    gateway with requests that wait for it.
    """

    def __init__(self, channel: grpc.aio.Channel, service_name: str) -> None:
        """Begin as if the service had been there a moment ago."""
        self._channel = channel
        self._service_name = service_name
        self._away = False

    def over(self) -> None:
        """Note that a replica has answered."""
        if self._away:
            log.info("service back", service=self._service_name)
        self._away = False

    def patience(self) -> Patience:
        """Return the patience of one request."""
        return Patience(self, self._channel, 0.0 if self._away else GRACE_S)

    def given_up(self) -> None:
        """Note that a request has waited in vain."""
        if not self._away:
            log.warning("service away", service=self._service_name)
        self._away = True


class Patience:
    """How long one request still waits for a service, over all its attempts."""

    def __init__(self, absence: Absence, channel: grpc.aio.Channel, seconds: float) -> None:
        self._absence = absence
        self._channel = channel
        self._left_s = seconds
        self._pause_s = _FIRST_PAUSE_S

    async def may_try_again(self, left_s: float) -> bool:
        """Wait until a replica can be reached; return whether to try again.

        Args:
            left_s: what is left of the request's own time, in seconds.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        budget_s = min(self._left_s, left_s)
        if budget_s > self._pause_s:
            # A channel that is ready may still have lost this call to replicas that were about to go.
            with suppress(TimeoutError):
                async with asyncio.timeout(budget_s):
                    await asyncio.sleep(self._pause_s)
                    await self._channel.channel_ready()
                self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
                self._left_s -= loop.time() - started
                return True
        self._absence.given_up()
        return False
