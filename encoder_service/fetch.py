"""Pictures fetched from URLs that strangers send, without reaching into the operator's network.

A host's name is resolved once. Every address it has is checked, and the socket is connected to one of exactly these:
nothing looks the name up again, so a name that changes its answer in between gains nothing. Redirects are followed
here, each through the same checks. The environment's proxies are not used: a proxy would connect to what it likes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from encoder_service.addresses import IpAddress, parse_address
from encoder_service.limits import FetchLimits
from encoder_service.metrics import FETCH_SECONDS, FETCHED_BYTES, FETCHES
from sam.errors import ImageTooLarge, ImageUrlFailed, ImageUrlRefused, Overloaded, SamovarError
from sam.metrics import REFUSALS
from sam.places import Places

Resolve = Callable[[str, int], Awaitable[list[IpAddress]]]
"""Looks up the addresses of a name; the port is that of the connection to be made."""

MAX_URL_LENGTH = 8192
_CHUNK_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

# A look-up that hangs in an unresponsive name server outlives the fetch that has given it up.
_LOOK_UPS_PER_FETCH = 2

_WHERE = "The fetching of URLs by this encoder replica"

# One text for every refusal, an unknown name included: different ones would tell a stranger which names and addresses
# exist inside the operator's network.
_REFUSED = (
    "Could not load input image. Cause: this server does not fetch that URL. Use an https URL of a public host, without"
    " user name and at the usual port, or send the picture itself."
)
_SWITCHED_OFF = (
    "Could not load input image. Cause: this server does not fetch URLs. Send the picture itself, in base64."
)


class ImageFetcher:
    """Downloads encoded pictures."""

    def __init__(
        self, limits: FetchLimits, *, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Take the limits.

        Args:
            limits: what to fetch.
            resolve: looks names up; the system's resolver if None.
            tls: verifies servers; the system's certificates if None.
        """
        self._limits = limits
        self._resolve = resolve or self._resolve_by_system
        self._tls = tls
        # Fewer than calls: hosts that never answer take the places of other fetches, and of nothing else.
        self._places = Places(limits.max_fetches, _WHERE, "url_fetches")
        # Threads of its own, so that a name server that hangs does not take the ones that decode pictures.
        look_ups = _LOOK_UPS_PER_FETCH * limits.max_fetches
        self._threads = ThreadPoolExecutor(look_ups, thread_name_prefix="resolve")
        self._refused_look_ups = REFUSALS.labels("name_lookups")
        self._free_threads = threading.BoundedSemaphore(look_ups)

    async def fetch(self, url: str) -> bytes:
        """Download the encoded picture at a URL.

        Raises:
            ImageUrlRefused: the URL, an address of its host or a redirect's target is not allowed.
            ImageUrlFailed: it is allowed, but the download did not succeed in time.
            ImageTooLarge: the file has more bytes than allowed.
            Overloaded: as many URLs are being fetched as may be.
        """
        started = time.monotonic()
        try:
            content = await self._fetched(url)
        except SamovarError as error:
            FETCHES.labels(error.reason).inc()
            raise
        FETCHES.labels("OK").inc()
        FETCHED_BYTES.inc(len(content))
        FETCH_SECONDS.observe(time.monotonic() - started)
        return content

    def close(self) -> None:
        """End the resolver's threads; look-ups that hang are left behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _fetched(self, url: str) -> bytes:
        if not self._limits.enabled:
            raise ImageUrlRefused(_SWITCHED_OFF, field="image")
        try:
            parsed = _parse(url)
            with self._places.hold():
                async with asyncio.timeout(self._limits.total_timeout_s):
                    return await self._follow(parsed)
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise _failed("its server took too long") from None
        except (aiohttp.ClientError, OSError, ValueError):
            # Among them ours from `_CheckedAddresses`, which only a fault in this module could bring about.
            raise _failed("its server could not be reached or did not answer properly") from None

    async def _follow(self, url: URL) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            addresses = await self._checked_addresses(url)
            async with self._session(addresses) as session, session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response)
                url = _parse(response.headers.get("Location", ""), base=url)
        raise _failed(f"it redirects more than {self._limits.max_redirects} times")

    async def _checked_addresses(self, url: URL) -> list[IpAddress]:
        """Return the addresses of a URL's host, all of them allowed."""
        host, port = url.raw_host, url.port
        if url.scheme != "https" and not (url.scheme == "http" and self._limits.allow_http):
            raise _refused()
        if not host or not port or url.raw_user is not None or url.raw_password is not None:
            raise _refused()
        try:
            literal = parse_address(host)
            addresses = [literal] if literal else await self._resolve(host, port)
        except (OSError, ValueError):
            raise _refused() from None
        # All of them, not any: a name with a public and a private address is an attempt, not a mistake.
        if not addresses or not all(self._limits.allowed_hosts.allow(host, port, one) for one in addresses):
            raise _refused()
        return addresses

    def _session(self, addresses: list[IpAddress]) -> aiohttp.ClientSession:
        """Make a client that can connect to these addresses only, keeps nothing and trusts no environment."""
        checked = _CheckedAddresses(addresses)
        connector = aiohttp.TCPConnector(
            resolver=checked,
            socket_factory=checked.open_socket,
            use_dns_cache=False,
            force_close=True,
            ssl=True if self._tls is None else self._tls,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed answers are refused below instead of unpacked, so that no small body becomes a large one.
            auto_decompress=False,
            headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "samovar"},
            timeout=aiohttp.ClientTimeout(total=None, connect=self._limits.connect_timeout_s),
            trust_env=False,
        )

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise _failed(f"its server answered with status {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _failed("its server compressed the answer although it was asked not to")
        if (response.content_length or 0) > self._limits.max_bytes:
            raise self._too_large()
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._limits.max_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> ImageTooLarge:
        return ImageTooLarge(
            f"Could not load input image. Cause: the file at the URL has more than {self._limits.max_bytes} bytes. "
            "Use a smaller one.",
            field="image",
        )

    async def _resolve_by_system(self, host: str, port: int) -> list[IpAddress]:
        # Turned away instead of waiting for a thread, which would look like a host that does not answer.
        if not self._free_threads.acquire(blocking=False):
            self._refused_look_ups.inc()
            raise Overloaded("This encoder replica is looking up as many names as it may. Try again shortly.")

        def look_up() -> list[Any]:
            try:
                return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            finally:
                self._free_threads.release()

        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [ipaddress.ip_address(info[4][0]) for info in found]


class _CheckedAddresses(AbstractResolver):
    """Answers every look-up of one connection with the addresses that were checked, and opens sockets to no others."""

    def __init__(self, addresses: list[IpAddress]) -> None:
        self._addresses = list(dict.fromkeys(addresses))

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    def open_socket(self, info: Any) -> socket.socket:
        """Open a socket for one address, just before it is connected; a literal host arrives here only."""
        family, kind, protocol, _, target = info
        if ipaddress.ip_address(target[0]) not in self._addresses:
            raise OSError("an address was about to be connected to that had not been checked")
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        """Do nothing; there is nothing to close."""


def _parse(text: str, base: URL | None = None) -> URL:
    """Parse an absolute URL, or one relative to `base`, with the parser of the client that will request it."""
    # Parsers differ over backslashes, blanks and control characters, and a difference is a way around the checks.
    if not text or len(text) > MAX_URL_LENGTH or any(char <= " " or char in "\\\x7f" for char in text):
        raise _refused()
    try:
        url = URL(text)
        return base.join(url) if base is not None else url
    except ValueError:
        raise _refused() from None


def _refused() -> ImageUrlRefused:
    return ImageUrlRefused(_REFUSED, field="image")


def _failed(cause: str) -> ImageUrlFailed:
    return ImageUrlFailed(
        f"Could not load input image. Cause: the URL could not be downloaded; {cause}. Check it, or send the picture "
        "itself.",
        field="image",
    )
