"""Who is calling, until when, and under which request id."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from starlette.requests import Request

from sam.auth import KeyRing
from sam.errors import DeadlineExceeded, RequestInvalid, Unauthenticated
from sam.rpc.caller import AUTHORIZATION_KEY, api_key_of, request_id_or_new, to_metadata

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-ms"
PRIORITY_HEADER = "priority"

_URGENCY = re.compile(r"(?:^|,)\s*u=([0-7])\s*(?:[,;]|$)")
_URGENCY_OF_MOST = 3
"""Source: RFC 9218, section 4.1: 0 is the most urgent, 7 is for what goes on in the background."""

# A call must end before its HTTP request does, so that the answer still gets out.
_MARGIN_S = 0.1
_MARGIN_SHARE = 0.05

# A key travels in a header of HTTP/2, which holds visible ASCII and spaces; gRPC refuses metadata over 8 KiB.
_SENDABLE_KEY = re.compile(r"[ -~]{0,1024}")


@dataclass(slots=True)
class Call:
    """One HTTP request on its way to the services.

    Attributes:
        request_id: what it is called in every tier's log.
        api_key: the caller's key; empty if it sent none.
        started: when it arrived, on the clock of `time.monotonic`.
        deadline: when its answer must be out, on the same clock.
        store_lost: whether a service has waited for the store in vain; those asked later are told not to.
        bulk: whether it is one of many that can wait.
    """

    request_id: str
    api_key: str
    started: float
    deadline: float
    store_lost: bool = False
    bulk: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The gRPC metadata that names the caller to the services."""
        return to_metadata(self.api_key, self.request_id, store_lost=self.store_lost)

    @property
    def elapsed_s(self) -> float:
        """How long the request has taken so far, in seconds."""
        return time.monotonic() - self.started

    @property
    def left_s(self) -> float:
        """How long the request may still take, in seconds; below 0 if it is late."""
        return self.deadline - time.monotonic()

    def rpc_timeout_s(self) -> float:
        """Return how long a gRPC call may take now, in seconds: what is left, minus a margin.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        left = self.left_s
        margin = min(_MARGIN_S, left * _MARGIN_SHARE)
        if left <= 0:
            raise DeadlineExceeded("The request's deadline passed before it could be answered.")
        return left - margin


class Reception:
    """Lets callers in."""

    def __init__(self, keys: KeyRing, timeout_s: float) -> None:
        """Admit the holders of `keys` and give each request `timeout_s` seconds at most."""
        self._keys = keys
        self._timeout_s = timeout_s

    def admit(self, request: Request, query_key: str | None, body_key: str | None = None) -> Call:
        """Check a request's key and deadline: the key is that of the query, else of the header, else of the body.

        Raises:
            Unauthenticated: keys are required, and the one sent is none of them.
            Overloaded: the key's limits are reached.
            RequestInvalid: the key cannot be one, or the time-out is not a number.
        """
        header = {AUTHORIZATION_KEY: request.headers.get(AUTHORIZATION_KEY, "")}
        api_key = ((query_key or "").strip() or api_key_of(header) or (body_key or "")).strip()
        if not _SENDABLE_KEY.fullmatch(api_key):
            if self._keys.required:
                raise Unauthenticated("The API key holds characters that no key of this server has.")
            raise RequestInvalid("An API key is at most 1024 visible ASCII characters.", field="api_key")
        self._keys.admit(api_key)
        request.state.caller = self._keys.name_of(api_key)
        # Until the last byte of the answer: see `RequestMiddleware`.
        request.state.held.enter_context(self._keys.holding(api_key))
        started: float = request.state.started
        deadline = started + self._timeout_of(request)
        return Call(request.state.request_id, api_key, started, deadline, bulk=_can_wait(request))

    def _timeout_of(self, request: Request) -> float:
        text = request.headers.get(TIMEOUT_HEADER)
        if text is None:
            return self._timeout_s
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
            raise RequestInvalid("X-Request-Timeout-Ms is a whole number of milliseconds, 1 or more.")
        return min(self._timeout_s, int(text) / 1000)


def _can_wait(request: Request) -> bool:
    # A header of that kind that cannot be read is as good as none.
    found = _URGENCY.search(request.headers.get(PRIORITY_HEADER, ""))
    return found is not None and int(found[1]) > _URGENCY_OF_MOST


def request_id_of(request: Request) -> str:
    """Return the id under which a request is logged; a new one if none was given to it."""
    return request_id_or_new(getattr(request.state, "request_id", None))
