"""Connections to Redis while its name cannot be asked for, and while some of them are broken."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from sam.embedding_store.redis_clients import connect
from sam.embedding_store.redis_connections import ASKED_AGAIN_AFTER_S, AddressBook, ServerPool
from tests.conftest import RedisServer


class NameServer:
    """A name server as seen from its client; it may be slow, or not be there."""

    def __init__(self) -> None:
        self.addresses = ["10.0.0.1"]
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = 0

    async def look_up(self, host: str, port: int) -> list[str]:
        self.asked += 1
        await self.answers.wait()
        if not self.addresses:
            raise socket.gaierror("no such name")
        return list(self.addresses)


def test_a_name_that_moves_is_followed() -> None:
    """Each question is asked anew while the name server answers."""

    async def scenario() -> None:
        names = NameServer()
        book = AddressBook(names.look_up)
        assert await book.addresses("redis", 6379) == ["10.0.0.1"]
        names.addresses = ["10.0.0.2", "10.0.0.3"]
        assert await book.addresses("redis", 6379) == ["10.0.0.2", "10.0.0.3"]

    asyncio.run(scenario())


def test_a_name_server_that_does_not_answer_is_done_without() -> None:
    """The last addresses are used meanwhile, one question is outstanding, and its late answer counts."""

    async def scenario() -> None:
        names = NameServer()
        book = AddressBook(names.look_up)
        await book.addresses("redis", 6379)
        names.answers.clear()
        names.addresses = ["10.0.0.2"]
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(book.addresses("redis", 6379) for _ in range(9))) == [["10.0.0.1"]] * 9
        assert names.asked == 2
        names.answers.set()
        assert await book.addresses("redis", 6379) == ["10.0.0.2"]
        assert names.asked == 2

    asyncio.run(scenario())


def test_a_question_that_is_lost_is_asked_again() -> None:
    """Where the name server has begun anew and never heard of a question, the next one is answered at once."""

    async def scenario() -> None:
        names = NameServer()
        book = AddressBook(names.look_up)
        await book.addresses("redis", 6379)
        lost = names.answers = asyncio.Event()
        names.addresses = ["10.0.0.2"]
        assert await book.addresses("redis", 6379) == ["10.0.0.1"]
        names.answers = asyncio.Event()
        names.answers.set()
        async with asyncio.timeout(ASKED_AGAIN_AFTER_S + 2):
            while names.asked < 3:
                await book.addresses("redis", 6379)
        assert await book.addresses("redis", 6379) == ["10.0.0.2"]
        names.addresses = ["10.0.0.9"]
        lost.set()
        await asyncio.sleep(0)
        names.addresses = ["10.0.0.3"]
        assert await book.addresses("redis", 6379) == ["10.0.0.3"]

    asyncio.run(scenario())


def test_a_slow_name_server_is_heeded() -> None:
    """An answer that comes after another question was asked counts, as long as that one has not been answered."""

    async def scenario() -> None:
        names = NameServer()
        book = AddressBook(names.look_up)
        await book.addresses("redis", 6379)
        slow = names.answers = asyncio.Event()
        async with asyncio.timeout(ASKED_AGAIN_AFTER_S + 2):
            await book.addresses("redis", 6379)
            names.answers = asyncio.Event()
            while names.asked < 3:
                await book.addresses("redis", 6379)
        names.addresses = ["10.0.0.2"]
        slow.set()
        assert await book.addresses("redis", 6379) == ["10.0.0.2"]

    asyncio.run(scenario())


def test_a_name_that_is_gone_is_still_known() -> None:
    """An error of the name server is no reason to forget; a name never known is an error."""

    async def scenario() -> None:
        names = NameServer()
        book = AddressBook(names.look_up)
        await book.addresses("redis", 6379)
        names.addresses = []
        assert await book.addresses("redis", 6379) == ["10.0.0.1"]
        with pytest.raises(OSError, match="no such name"):
            await book.addresses("elsewhere", 6379)

    asyncio.run(scenario())


def test_addresses_are_tried_in_turn(redis_server: RedisServer) -> None:
    """Of a name with two addresses, of which one refuses, the other is used."""

    async def scenario() -> None:
        pool: Any = ServerPool(host="redis.test", port=redis_server.port, book=None)
        pool.connection_kwargs["book"] = AddressBook(lambda *_: asyncio.sleep(0, ["127.0.0.9", "127.0.0.1"]))
        connection = await pool.get_connection()
        try:
            await connection.send_command("PING")
            assert await connection.read_response() == b"PONG"
        finally:
            await connection.disconnect()

    asyncio.run(scenario())


def test_an_open_connection_comes_before_a_broken_one(redis_server: RedisServer) -> None:
    """While connections are open, none is opened in the place of one that has been lost."""

    async def scenario() -> None:
        clients = connect(redis_server.url, 1.0)
        pool = clients.commands.connection_pool
        first, second = await pool.get_connection(), await pool.get_connection()
        await pool.release(first)
        # Given back last, as is one that could not be opened.
        await second.disconnect()
        await pool.release(second)
        with redis_server.client() as look:
            opened = look.info("stats")["total_connections_received"]
            for _ in range(5):
                assert await clients.commands.ping()
            assert look.info("stats")["total_connections_received"] == opened
        for client in clients.every:
            await client.aclose()

    asyncio.run(scenario())
