"""API keys: who may call, and whose image_ids are whose."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from sam.errors import StartupError, Unauthenticated

ANONYMOUS_TENANT = "anonymous"
"""The tenant of callers that send no key."""


def tenant_of(api_key: str) -> str:
    """Return the tenant that a key stands for: a digest, so that keys never reach the store or a log.

    Callers with different keys never see each other's image_ids, whether or not the operator checks keys.
    """
    if not api_key:
        return ANONYMOUS_TENANT
    return hashlib.sha256(b"samovar-tenant\0" + api_key.encode()).hexdigest()[:32]


class KeyRing:
    """The keys whose holders may call. Empty: everyone may."""

    def __init__(self, api_keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key) for key in api_keys]

    @classmethod
    def from_file(cls, path: Path | None) -> KeyRing:
        """Read one key a line; blank lines and lines that start with `#` are skipped. None: an empty ring.

        Raises:
            StartupError: the file cannot be read or holds no key, which would let everyone in.
        """
        if path is None:
            return cls()
        try:
            lines = [line.strip() for line in path.read_text().splitlines()]
        except OSError as error:
            raise StartupError(f"The API keys file {path} cannot be read: {error.strerror}.") from None
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise StartupError(f"The API keys file {path} holds no key. Add one a line, or unset api_keys_file.")
        return cls(keys)

    @property
    def required(self) -> bool:
        """Whether a caller needs a key."""
        return bool(self._digests)

    def admit(self, api_key: str) -> str:
        """Return the caller's tenant.

        Raises:
            Unauthenticated: keys are required, and this is none of them.
        """
        if self._digests:
            # All are compared, each in constant time: how long it takes tells nothing about which one is near.
            sent = _digest(api_key)
            if not sum([hmac.compare_digest(sent, known) for known in self._digests]):
                raise Unauthenticated(
                    "A valid API key is required: send it as ?api_key=..., as 'Authorization: Bearer ...' "
                    "or as gRPC metadata 'authorization'."
                )
        return tenant_of(api_key)


def _digest(api_key: str) -> bytes:
    return hashlib.sha256(api_key.encode()).digest()
