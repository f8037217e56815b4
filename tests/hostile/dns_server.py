"""A name server of our own, which may answer otherwise each time, and the asking of it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from encoder_service.addresses import IpAddress

_A, _IN = 1, 1
_ANSWER, _NO_SUCH_NAME = 0x8180, 0x8183
_NAME_OF_THE_QUESTION = b"\xc0\x0c"
PATIENCE_S = 10.0

Answers = Callable[[int], Sequence[str]]
"""The addresses of a name when it is asked for the n-th time, from 0."""


@dataclass
class FickleDns:
    """A DNS server on loopback.

    Attributes:
        names: what it answers, by name.
        asked: how often each name was asked for.
    """

    port: int = 0
    names: dict[str, Answers] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    async def resolve(self, host: str, port: int) -> list[IpAddress]:
        """Look a name up as a stub resolver does: a question over UDP for its IPv4 addresses; see `Resolve`."""
        return await asyncio.to_thread(self._ask, host)

    def _ask(self, host: str) -> list[IpAddress]:
        labels = b"".join(bytes([len(part)]) + part for part in host.rstrip(".").encode().split(b"."))
        question = labels + b"\0" + struct.pack(">HH", _A, _IN)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE_S)
            asking.sendto(struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + question, ("127.0.0.1", self.port))
            answer = asking.recv(4096)
        _, flags, _, count, _, _ = struct.unpack_from(">6H", answer)
        if flags != _ANSWER or not count:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        records = answer[12 + len(question) :]
        return [ipaddress.ip_address(records[16 * number + 12 : 16 * number + 16]) for number in range(count)]

    def answer(self, query: bytes) -> bytes:
        """Return the answer to a query."""
        place, labels = 12, []
        while query[place]:
            labels.append(query[place + 1 : place + 1 + query[place]].decode())
            place += 1 + query[place]
        name, question = ".".join(labels), query[12 : place + 5]
        if name not in self.names:
            return query[:2] + struct.pack(">5H", _NO_SUCH_NAME, 1, 0, 0, 0) + question
        times = self.asked.get(name, 0)
        self.asked[name] = times + 1
        addresses = [ipaddress.IPv4Address(text).packed for text in self.names[name](times)]
        # Nobody is to remember it: a time to live of 0 seconds.
        records = b"".join(_NAME_OF_THE_QUESTION + struct.pack(">HHIH", _A, _IN, 0, 4) + one for one in addresses)
        return query[:2] + struct.pack(">5H", _ANSWER, 1, len(addresses), 0, 0) + question + records


@contextmanager
def fickle_dns() -> Iterator[FickleDns]:
    """Run the server until the block is left."""
    dns = FickleDns()

    class Answering(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, back = self.request
            back.sendto(dns.answer(query), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Answering) as server:
        dns.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield dns
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)
