"""A TCP proxy that behaves as bad networks do: late, cut short, reset or stalled, in either direction."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

_CHUNK = 64 * 2**10
_CHUNKS_UNDER_WAY = 64
_POLL_S = 0.01
_RESET = struct.pack("ii", 1, 0)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Weather:
    """What happens to the bytes of one direction.

    Attributes:
        latency_s: how much later each chunk arrives.
        stalled: nothing arrives, nothing is closed.
        cut_after: after so many further bytes a connection ends; None: never.
        cut: how it ends: closed in order, which leaves what was under way truncated, or reset.
    """

    latency_s: float = 0.0
    stalled: bool = False
    cut_after: int | None = None
    cut: Literal["close", "reset"] = "reset"


FAIR = Weather()


class ChaosProxy:
    """Passes connections on to a port of this machine. Its weather may be changed at any time, from any thread.

    Attributes:
        port: where it listens.
        to_server: the weather of what clients send.
        to_client: the weather of what the server sends.
        refusing: whether new connections are reset at once.
        accepted: how many connections came.
        cuts: how many connections it ended itself.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.port = 0
        self.to_server = FAIR
        self.to_client = FAIR
        self.refusing = False
        self.accepted = 0
        self.cuts = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def target(self) -> str:
        """Its address, for gRPC."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its address, for HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def heal(self) -> None:
        """Let everything pass again."""
        self.to_server = self.to_client = FAIR
        self.refusing = False

    def reset_connections(self) -> int:
        """Reset all connections; return how many there were."""
        return self._call(self._reset_all())

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._call(self._listen())

    def stop(self) -> None:
        """End everything."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reset_all(self) -> int:
        tasks = len(self._tasks)
        for writer in list(self._writers):
            _reset(writer)
        self.cuts += tasks
        return tasks

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        self.accepted += 1
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self.refusing:
                _reset(writer)
                return
            await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(writer)
            return
        self._writers.add(upstream_writer)
        pumps = (
            asyncio.create_task(self._pump("to_server", reader, upstream_writer, writer)),
            asyncio.create_task(self._pump("to_client", upstream_reader, writer, upstream_writer)),
        )
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers.discard(upstream_writer)
            upstream_writer.close()

    async def _pump(
        self,
        direction: Literal["to_server", "to_client"],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        feeding = asyncio.create_task(_feed(reader, chunks))
        passed, weather = 0, FAIR
        loop = asyncio.get_running_loop()
        try:
            while (arrived_and_chunk := await chunks.get())[1]:
                arrived, chunk = arrived_and_chunk
                # Polled: the weather is set from other threads, by plain assignment.
                while (now := self._weather(direction)).stalled:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
                if (late := arrived + now.latency_s - loop.time()) > 0:
                    await asyncio.sleep(late)
                if now is not weather:
                    passed, weather = 0, now
                if now.cut_after is not None and passed + len(chunk) > now.cut_after:
                    await self._cut(writer, back, chunk[: now.cut_after - passed], now.cut)
                    return
                passed += len(chunk)
                writer.write(chunk)
                await writer.drain()
            await feeding
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            _reset(writer)
            _reset(back)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    def _weather(self, direction: Literal["to_server", "to_client"]) -> Weather:
        return self.to_server if direction == "to_server" else self.to_client

    async def _cut(self, writer: asyncio.StreamWriter, back: asyncio.StreamWriter, last: bytes, how: str) -> None:
        writer.write(last)
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.drain(), 1)
        self.cuts += 1
        for end in (writer, back):
            if how == "close":
                end.close()
            else:
                _reset(end)


async def _feed(reader: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
    """Read until the end, which is an empty chunk, and note when what came: lateness adds up to no slowness."""
    chunk = b"-"
    while chunk:
        try:
            chunk = await reader.read(_CHUNK)
        except OSError:
            await chunks.put((0.0, b""))
            raise
        await chunks.put((asyncio.get_running_loop().time(), chunk))


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@contextmanager
def chaos_proxy(target_port: int) -> Iterator[ChaosProxy]:
    """Run a proxy in front of a port, in a thread of its own."""
    proxy = ChaosProxy(target_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
