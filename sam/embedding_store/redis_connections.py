"""Connections to a Redis that outlive a name server which does not answer for a while.

redis-py resolves a host's name for each connection, in one of the few threads that the event loop has for everything,
and hands out the connection that was given back last, even if that is the one that could not be opened. A name server
that is away for seconds (a container network's is, when containers come and go) would so make a Redis look lost that
answers on every open connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool

LOOKUP_S = 0.5
"""How long a name server may take before the addresses that it named last are used."""

ASKED_AGAIN_AFTER_S = 1.0
"""How old a question may be before it counts as lost, and the next who wants to know asks anew."""

_QUESTIONS_AT_ONCE = 4
"""The system gives a question up after some five seconds; each occupies a thread for as long."""

Lookup = Callable[[str, int], Awaitable[list[str]]]


class AddressBook:
    """The addresses behind names, as they were when their server answered last. Belongs to one event loop.

    Args:
        look_up: asks for the addresses of a host and port; raises `OSError` if there are none.
    """

    def __init__(self, look_up: Lookup | None = None) -> None:
        self._threads = ThreadPoolExecutor(_QUESTIONS_AT_ONCE, thread_name_prefix="names")
        self._look_up = look_up or self._look_up_in_a_thread
        self._known: dict[tuple[str, int], list[str]] = {}
        self._known_as_of: dict[tuple[str, int], float] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[list[str]]] = {}
        self._asked_at: dict[tuple[str, int], float] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host, the one to try first in front.

        The name is looked up each time, once for all who ask meanwhile, and anew where that question seems to be lost.
        If it takes longer than `LOOKUP_S` or fails, the addresses known are returned, if there are any.

        Raises:
            OSError: the name leads nowhere, and never did.
        """
        place = host, port
        asking, now = self._asking.get(place), asyncio.get_running_loop().time()
        if asking is None or now - self._asked_at[place] > ASKED_AGAIN_AFTER_S:
            self._asked_at[place] = now
            asking = self._asking[place] = asyncio.create_task(self._ask(place, now))
            asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(LOOKUP_S if place in self._known else None):
                # Whoever leaves does not take the question along.
                return await asyncio.shield(asking)
        except (TimeoutError, OSError):
            if place not in self._known:
                raise
            return self._known[place]

    async def _ask(self, place: tuple[str, int], asked_at: float) -> list[str]:
        try:
            addresses = await self._look_up(*place)
            # What comes after the answer to a newer question is news of yesterday.
            if asked_at >= self._known_as_of.get(place, asked_at):
                self._known[place], self._known_as_of[place] = addresses, asked_at
            return addresses
        finally:
            if self._asking.get(place) is asyncio.current_task():
                del self._asking[place]

    async def _look_up_in_a_thread(self, host: str, port: int) -> list[str]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [str(address[0]) for *_, address in found]


class _ByAddress(Connection):
    """Connects to an address of the book instead of asking for the name itself."""

    def __init__(self, *, book: AddressBook, **options: Any) -> None:
        super().__init__(**options)
        self._book = book
        self._address = self.host

    async def _connect(self) -> None:
        failure: OSError | None = None
        for address in await self._book.addresses(self.host, int(self.port)):
            self._address = address
            try:
                await super()._connect()  # type: ignore[no-untyped-call]
                return
            except OSError as error:
                failure = error
        raise failure or OSError(f"{self.host} has no address")

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = {**super()._connection_arguments(), "host": self._address}
        if arguments.get("ssl"):
            # A certificate is the name's.
            arguments["server_hostname"] = self.host
        return arguments


class _ByAddressWithTls(_ByAddress, SSLConnection):
    pass


class DirectRedis(Redis):
    """Sends commands as redis-py does, but keeps no metrics of them: ours are `CountedBackend`'s.

    With what `_ConnectedFirst` leaves out, a small command takes half of redis-py's time on the event loop.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command, once more if its connection turns out to be closed, and return the reply."""
        connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            return await connection.retry.call_with_retry(
                lambda: self._send_command_parse_response(  # type: ignore[no-untyped-call]
                    connection, args[0], *args, **options
                ),
                lambda _: connection.disconnect(),
            )
        finally:
            await self.connection_pool.release(connection)


class _ConnectedFirst(ConnectionPool):
    """Hands out connections that are open before those that would have to be opened."""

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> Any:
        """Return a connection that nobody uses and that is open."""
        connection = self.get_available_connection()
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """Take a connection back."""
        self._in_use_connections.remove(connection)
        if connection.should_reconnect():
            await connection.disconnect()
        self._available_connections.append(connection)

    def get_available_connection(self) -> Any:
        """Return a connection that nobody uses."""
        available = self._available_connections
        for place in reversed(range(len(available))):
            if available[place].is_connected:
                available.append(available.pop(place))
                break
        return super().get_available_connection()  # type: ignore[no-untyped-call]


class ServerPool(_ConnectedFirst):
    """Connections to one server. Made by `from_url`, with redis-py's options."""

    def __init__(self, connection_class: type[Any] = Connection, **options: Any) -> None:
        if connection_class in (Connection, SSLConnection):
            tls = connection_class is SSLConnection
            connection_class = _ByAddressWithTls if tls else _ByAddress
            options["book"] = AddressBook()
        super().__init__(connection_class=connection_class, **options)


class MasterPool(_ConnectedFirst, SentinelConnectionPool):
    """Connections to the master that Sentinels name."""
