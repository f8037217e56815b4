"""Who is calling, read from a gRPC call's metadata."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from sam.auth import tenant_of

AUTHORIZATION_KEY = "authorization"
REQUEST_ID_KEY = "x-request-id"
STORE_LOST_KEY = "samovar-store-lost"
"""Set to `1` on a call whose request has waited for the store in vain elsewhere: see `sam.patience`."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one RPC.

    Attributes:
        tenant: whose image_ids it sees.
    """

    tenant: str

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Read the caller from the metadata of a call whose key was checked before."""
        return cls(tenant=tenant_of(api_key_of(to_dict(context.invocation_metadata() or ()))))


def to_dict(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Return textual metadata as a dictionary; of a repeated key, the first value."""
    out: dict[str, str] = {}
    for key, value in metadata:
        if isinstance(value, str):
            out.setdefault(key, value)
    return out


def api_key_of(metadata: dict[str, str]) -> str:
    """Return the key of `authorization: Bearer KEY`, or an empty string."""
    scheme, _, key = metadata.get(AUTHORIZATION_KEY, "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def request_id_or_new(sent: str | None) -> str:
    """Return the caller's request id if it is 1 to 128 visible ASCII characters, otherwise a new one."""
    return sent if sent and _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def to_metadata(api_key: str, request_id: str, *, store_lost: bool = False) -> tuple[tuple[str, str], ...]:
    """Return the metadata with which a client names itself."""
    metadata = [(REQUEST_ID_KEY, request_id)]
    if api_key:
        metadata.append((AUTHORIZATION_KEY, f"Bearer {api_key}"))
    if store_lost:
        metadata.append((STORE_LOST_KEY, "1"))
    return tuple(metadata)
