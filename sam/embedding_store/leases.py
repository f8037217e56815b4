"""The right to encode an image, held by one replica at a time; and what is known of images that cannot be encoded.

A lease only saves work. Were two replicas to encode one image, they would store the same embedding: nothing that is
answered depends on who holds a lease, on clocks, or on Redis keeping it.

The value under a lease's key is `held:TOKEN`, or `failed:` and the error that every replica would meet.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import orjson

from sam.embedding_store.backend import Backend
from sam.errors import ImageError, leaves

FAILURE_TTL_S = 10
"""How long an image's failure is remembered, in seconds: long enough for copies sent at once and a client's retries,
short enough for a changed limit to be noticed."""

POLL_S = 0.25
"""How often who waits looks for himself, in seconds, because a notice may be missed."""

_HELD, _FAILED = b"held:", b"failed:"
_FAILURES = {leaf.reason: leaf for leaf in leaves(ImageError)}


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was granted.

    Attributes:
        key: what it is for.
        value: tells its holder from others.
    """

    key: str
    value: bytes


class Leases:
    """Grants leases over a backend.

    Every coroutine raises `sam.errors.StoreUnavailable` if the backend cannot be reached.
    """

    def __init__(self, backend: Backend, ttl_s: int, *, poll_s: float = POLL_S) -> None:
        """Grant leases that end by themselves.

        Args:
            backend: where they are kept.
            ttl_s: after how many seconds without `renew` a lease ends.
            poll_s: how long `wait` lasts without a notice, in seconds.
        """
        self._backend = backend
        self._poll_s = poll_s
        self.ttl_s = ttl_s

    async def acquire(self, key: str) -> Lease | None:
        """Return the lease for `key`; None while another holds it.

        Raises:
            ImageError: what it is for failed a moment ago, and would again.
        """
        lease = Lease(key, _HELD + secrets.token_hex(16).encode())
        # Twice, because a lease may end between the two commands.
        for _ in range(2):
            if await self._backend.claim(key, lease.value, ttl_s=self.ttl_s):
                return lease
            value = await self._backend.get(key, ttl_s=0)
            if value == lease.value:
                # redis-py sent the claim twice, because its connection was lost before the first reply.
                return lease
            if value is not None:
                _raise_if_failed(value)
                return None
        return None

    async def renew(self, lease: Lease) -> bool:
        """Keep a lease for longer; False if it has ended and another holds it now."""
        value = await self._backend.get(lease.key, ttl_s=0)
        if value is None:
            # It was evicted or flushed, or ended while this process stood still.
            return await self._backend.claim(lease.key, lease.value, ttl_s=self.ttl_s)
        if value != lease.value:
            return False
        await self._backend.extend(lease.key, ttl_s=self.ttl_s)
        return True

    async def release(self, lease: Lease) -> None:
        """End a lease, and tell who waits."""
        if await self._backend.get(lease.key, ttl_s=0) == lease.value:
            await self._backend.delete(lease.key)
        await self._backend.tell(lease.key)

    async def fail(self, lease: Lease, error: ImageError) -> None:
        """End a lease by what every other holder would meet as well, and tell who waits."""
        failure = orjson.dumps({"reason": error.reason, "message": error.message})
        await self._backend.set(lease.key, _FAILED + failure, ttl_s=FAILURE_TTL_S)
        await self._backend.tell(lease.key)

    async def wait(self, key: str) -> None:
        """Return when the lease for `key` may have ended."""
        await self._backend.wait(key, timeout_s=self._poll_s)


def _raise_if_failed(value: bytes) -> None:
    """Raise the failure that a lease's value tells of, if it does."""
    if not value.startswith(_FAILED):
        return
    try:
        failure = orjson.loads(value.removeprefix(_FAILED))
        error = _FAILURES[failure["reason"]](str(failure["message"]))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return
    raise error
