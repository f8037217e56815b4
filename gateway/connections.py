"""HTTP connections whose requests begin within bounds: uvicorn itself lets a head be as long and slow as it likes."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sam.rpc.caller import request_id_or_new

HEAD_MAX_BYTES = 64 * 2**10
"""The request line and headers of one request; several times what any client sends."""


_LINGER_S = 1.0


class BoundedConnection(HttpToolsProtocol):
    """One connection.

    A head longer than `HEAD_MAX_BYTES` is answered with 431. A connection on which no whole head arrives within
    `head_timeout_s` of its first byte, or of the connection's beginning, is closed.
    """

    head_timeout_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._refused = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, and count them while a head is not whole."""
        if self._refused:
            return
        super().data_received(data)
        if self._head_timer is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_MAX_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        """Note that the head is whole."""
        self._stop_waiting()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self) -> None:
        self._stop_waiting()
        self._refused = True
        body = (
            f'{{"message":"The headers of the request are over the limit of {HEAD_MAX_BYTES} bytes. Send fewer.",'
            f'"reason":"REQUEST_TOO_LARGE","request_id":"{request_id_or_new(None)}"}}'
        ).encode()
        self.transport.write(
            STATUS_LINE[431]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        # Closed at once, what is still being sent would be answered with a reset, before the client reads the answer.
        self.loop.call_later(_LINGER_S, self.transport.close)


def connections(head_timeout_s: float) -> type[BoundedConnection]:
    """Return the kind of connection whose heads have to be whole within `head_timeout_s` seconds."""
    return type("BoundedConnection", (BoundedConnection,), {"head_timeout_s": head_timeout_s})
