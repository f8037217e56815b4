"""A small HTTP server for downloads, with the faults of real ones."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Serves one file under every name, and remembers what it was asked.

    Attributes:
        content: the file.
        honours_range: whether it continues downloads; otherwise it sends the whole file again.
        breaks_after: after how many bytes it drops each connection; None: it does not.
        states_length: whether it says how long its answer is.
        refuses_with: the HTTP status that it answers everything with; None: it serves the file.
        ranges: the `Range` header of each request so far, empty for none.
        base_url: where it is.
    """

    content: bytes
    honours_range: bool = True
    breaks_after: int | None = None
    states_length: bool = True
    refuses_with: int | None = None
    ranges: list[str] = field(default_factory=list)
    base_url: str = ""

    @contextmanager
    def running(self) -> Iterator[FileServer]:
        """Listen on a port of the system's choice."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.base_url = f"http://127.0.0.1:{server.server_port}/"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(file_server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._start()

        def do_GET(self) -> None:
            file_server.ranges.append(self.headers.get("Range", ""))
            body = self._start()
            if file_server.breaks_after is not None and len(body) > file_server.breaks_after:
                body = body[: file_server.breaks_after]
                self.close_connection = True
            # A client that refuses the answer does not wait for its end.
            with suppress(ConnectionError):
                self.wfile.write(body)

        def _start(self) -> bytes:
            if file_server.refuses_with is not None:
                self.send_error(file_server.refuses_with)
                return b""
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked and file_server.honours_range else 0
            if start and start >= len(file_server.content):
                self.send_error(416)
                return b""
            body = file_server.content[start:]
            self.send_response(206 if start else 200)
            if file_server.states_length:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.close_connection = True
            self.end_headers()
            return body

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
