"""API keys: who may call, how much, and whose image_ids are whose."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sam.errors import StartupError, Unauthenticated
from sam.key_limits import NO_LIMITS, KeyLimits, KeyMeter
from sam.keys_file import KnownKey, digest_of, read_keys

if TYPE_CHECKING:
    from sam.settings import AuthSettings

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
    """The keys whose holders may call. Empty: everyone may. Belongs to one event loop."""

    def __init__(self, api_keys: Iterable[str | KnownKey] = (), *, calls_per_request: int = 1) -> None:
        """Admit the holders of these keys; see `KeyMeter` for `calls_per_request`."""
        known = [KnownKey(digest_of(key)) if isinstance(key, str) else key for key in api_keys]
        self._digests = [key.digest for key in known]
        self._names = {key.digest: key.name for key in known if key.name}
        self._meters = {
            key.digest: KeyMeter(key.limits, calls_per_request=calls_per_request)
            for key in known
            if key.limits != NO_LIMITS
        }

    @classmethod
    def from_file(cls, path: Path | None, defaults: KeyLimits = NO_LIMITS, *, calls_per_request: int = 1) -> KeyRing:
        """Read a file of keys; see `sam.keys_file`. None: an empty ring.

        Raises:
            StartupError: the file cannot be used.
        """
        if path is None:
            return cls()
        return cls(read_keys(path, defaults), calls_per_request=calls_per_request)

    @classmethod
    def of(cls, settings: AuthSettings, *, calls_per_request: int = 1) -> KeyRing:
        """Return the keys that the settings name, with their limits.

        Raises:
            StartupError: the file cannot be used, or there are limits for keys and no keys.
        """
        defaults = KeyLimits(settings.key_rate_per_s, settings.key_concurrency)
        if settings.api_keys_file is None and defaults != NO_LIMITS:
            raise StartupError(
                "Limits for each API key need keys: set --api-keys-file (SAMOVAR_API_KEYS_FILE) as well."
            )
        return cls.from_file(settings.api_keys_file, defaults, calls_per_request=calls_per_request)

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
            sent = digest_of(api_key)
            if not sum([hmac.compare_digest(sent, known) for known in self._digests]):
                raise Unauthenticated(
                    "A valid API key is required: send it as ?api_key=..., as 'Authorization: Bearer ...' "
                    "or as gRPC metadata 'authorization'."
                )
        return tenant_of(api_key)

    def name_of(self, api_key: str) -> str:
        """Return what logs call the holder of a key that was admitted; empty if it has no name."""
        return self._names.get(digest_of(api_key), "") if self._names else ""

    def holding(self, api_key: str) -> AbstractContextManager[None]:
        """Return a block in which a request of a key that was admitted counts against its limits.

        Entering it raises:
            Overloaded: it is one too many.
        """
        meter = self._meters.get(digest_of(api_key)) if self._meters else None
        return nullcontext() if meter is None else meter.hold()
