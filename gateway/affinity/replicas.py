"""The replicas behind a target: found, connected to, watched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import grpc
import structlog

from gateway.affinity.placement import Placeable, Placement
from gateway.affinity.targets import Listed, Lookup, Named, look_up, read_target, target_of
from sam.rpc.channel import open_replica_channel
from sam.tls import Tls

LOOKED_AT_EVERY_S = 0.25
"""How often the state of each connection is looked at: how soon a replica that joins, or is back, gets work."""

LOOKED_UP_EVERY_S = 5.0
"""How often a name is looked up: gRPC does so whenever a connection ends, every ten seconds or so."""

_GRACE_LOOKS = 4
"""For how many looks a replica may be connecting and keep its pictures: servers end connections now and then."""

LOOKED_UP_AGAIN_AFTER_S = 1.0
"""How soon it is looked up again once a replica has refused."""

_ASKED = 2
"""How many replicas are tried by themselves before a call goes to any."""

log = structlog.get_logger("gateway")


@dataclass(eq=False, kw_only=True)
class Replica(Placeable):
    """One replica.

    Attributes:
        channel: the connection to it.
        stub: the service's methods there.
        looks_connecting: for how many looks it has neither been ready nor failed.
    """

    channel: grpc.aio.Channel
    stub: Any
    looks_connecting: int = 0


class Replicas:
    """The replicas of one service, and which of them is asked about a picture."""

    def __init__(
        self,
        target: str,
        service_name: str,
        tls: Tls | None,
        stub: Callable[[grpc.aio.Channel], Any],
        lookup: Lookup = look_up,
    ) -> None:
        """Know a target; nothing is looked up or connected to before `near` is called.

        Args:
            target: the service, as for `sam.rpc.channel.open_channel`.
            service_name: its full name, for health checks.
            tls: how to speak TLS; None: plain text.
            stub: makes a channel's methods.
            lookup: finds the addresses of a host.
        """
        self._place = read_target(target)
        self._service_name = service_name
        self._tls = tls
        self._stub = stub
        self._lookup = lookup
        self._known: dict[str, Replica] = {}
        self._leaving: list[Replica] = []
        self._placement: Placement[Replica] = Placement()
        self._watching: asyncio.Task[None] | None = None
        self._looking_up: asyncio.Task[list[str]] | None = None
        self._looked_up_at = float("-inf")
        self._refused = False
        self._name_lost = False

    @property
    def may_be_several(self) -> bool:
        """Whether there ever is anything to choose: one address stays one, and some targets only gRPC can resolve."""
        return isinstance(self._place, Named) or (isinstance(self._place, Listed) and len(self._place.addresses) > 1)

    @property
    def ready(self) -> list[str]:
        """The addresses of those that take calls, if there are at least two."""
        return [replica.name for replica in self._placement.replicas]

    def near(self, picture: str) -> Iterator[Replica]:
        """Yield the replicas to ask about a picture, one after another as long as they refuse. There may be none.

        Args:
            picture: what identifies it; empty if nothing does.
        """
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        if not picture or not self._placement.replicas:
            return iter(())
        return islice(filter(_is_ready, self._placement.candidates(picture)), _ASKED)

    @contextlib.contextmanager
    def asking(self, replica: Replica) -> Iterator[None]:
        """Count a call of a replica while the block runs."""
        self._placement.begin(replica)
        try:
            yield
        finally:
            self._placement.end(replica)

    def refused(self) -> None:
        """Note that a replica could not be reached: the name may stand for others by now."""
        self._refused = True

    async def close(self) -> None:
        """Stop watching, and close all connections."""
        tasks = [task for task in (self._watching, self._looking_up) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in [*self._known.values(), *self._leaving]:
            await replica.channel.close()

    async def _watch(self) -> None:
        failing = False
        while True:
            try:
                await self._look()
                failing = False
            except Exception:
                # Whatever it is, such as a certificate's file that has gone: calls go on as they can meanwhile.
                if not failing:
                    log.exception("replicas not looked at", service=self._service_name)
                failing = True
            await asyncio.sleep(LOOKED_AT_EVERY_S)

    async def _look(self) -> None:
        if isinstance(self._place, Listed):
            self._know(self._place.addresses)
        elif isinstance(self._place, Named):
            self._follow(self._place)
        ready = [replica for replica in self._known.values() if _takes_calls(replica)]
        if len(ready) < 2:
            ready = []
        if set(ready) != set(self._placement.replicas):
            self._placement.set(ready)
            log.info("replicas", service=self._service_name, known=len(self._known), ready=sorted(self.ready))
        gone = [replica for replica in self._leaving if not replica.under_way]
        self._leaving = [replica for replica in self._leaving if replica.under_way]
        for replica in gone:
            await replica.channel.close()

    def _follow(self, name: Named) -> None:
        """Look a name up in the background, where it is time, and heed what was found."""
        now = asyncio.get_running_loop().time()
        if self._looking_up is not None and self._looking_up.done():
            done, self._looking_up = self._looking_up, None
            try:
                self._know(done.result())
            except (OSError, UnicodeError) as error:
                if not self._name_lost:
                    log.warning("name not found", service=self._service_name, host=name.host, cause=str(error))
                self._name_lost = True
            else:
                self._name_lost = False
        pause_s = LOOKED_UP_AGAIN_AFTER_S if self._refused else LOOKED_UP_EVERY_S
        if self._looking_up is None and now - self._looked_up_at >= pause_s:
            self._looked_up_at, self._refused = now, False
            self._looking_up = asyncio.create_task(self._lookup(name.host, name.port))

    def _know(self, addresses: Iterable[str]) -> None:
        """Connect to the replicas that have come, and leave those that have gone."""
        wanted = set(addresses)
        if len(wanted) < 2:
            # One replica has every picture.
            wanted = set()
        for address in self._known.keys() - wanted:
            self._leaving.append(self._known.pop(address))
        authority = f"{self._place.host}:{self._place.port}" if isinstance(self._place, Named) else ""
        for address in wanted - self._known.keys():
            channel = open_replica_channel(target_of(address), self._service_name, self._tls, authority)
            self._known[address] = Replica(address, channel=channel, stub=self._stub(channel))


def _is_ready(replica: Replica) -> bool:
    return replica.channel.get_state() is grpc.ChannelConnectivity.READY


def _takes_calls(replica: Replica) -> bool:
    """Look at a replica's connection, which is ready once its health check says SERVING."""
    state = replica.channel.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        replica.looks_connecting = 0
        return True
    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE or not replica.placed:
        return False
    replica.looks_connecting += 1
    return replica.looks_connecting <= _GRACE_LOOKS
