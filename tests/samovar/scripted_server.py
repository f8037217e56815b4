"""An HTTP server that answers what a test tells it to, for what no real one does on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Scripted:
    """One answer. `hangs`: the connection stays open, silent, until the test is over. `breaks`: it is closed."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    breaks: bool = False
    trickle_s: float = 0.0

    @classmethod
    def error(cls, status: int, reason: str, message: str = "no", **headers: str) -> Scripted:
        """Return an error as the gateway writes one."""
        body = {"message": message, "reason": reason, "request_id": "r1", "field": "box", "metadata": {"served": "m"}}
        return cls(status, json.dumps(body).encode(), {name.replace("_", "-"): text for name, text in headers.items()})


class ScriptedServer:
    """Gives the answers of its script in their order, the last one for ever."""

    def __init__(self) -> None:
        self.script: list[Scripted] = [Scripted()]
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.over = threading.Event()
        self.spoon_s = 0.0
        """How long reading 64 KiB of a body takes."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                content = self._content(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append((self.command, self.path, headers, content))
                answer = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                if answer.hangs:
                    server.over.wait(30)
                if answer.hangs or answer.breaks:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not answer.trickle_s:
                    self.wfile.write(answer.body)
                    return
                for byte in answer.body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    if server.over.wait(answer.trickle_s):
                        return

            def _content(self, length: int) -> bytes:
                if not server.spoon_s:
                    return self.rfile.read(length)
                read = b""
                while len(read) < length and not server.over.wait(server.spoon_s):
                    read += self.rfile.read(min(65_536, length - len(read)))
                return read

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 (the library's names)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    # The client has left, which some tests are about.
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End, and with it whatever hangs."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run one."""
    server = ScriptedServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
