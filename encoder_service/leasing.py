"""Encoding under a lease: of all replicas one encodes an image, and the others wait for what it stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from encoder_service.metrics import LEASES_LOST
from sam.embedding_store import Lease, Leases
from sam.errors import ImageError, StoreUnavailable

log = structlog.get_logger("encoder_service.leasing")

_RENEWALS = 3
"""A lease is renewed so often within its time, so that a late heartbeat does not lose it."""


@asynccontextmanager
async def kept(leases: Leases, lease: Lease) -> AsyncIterator[None]:
    """Renew a lease while the body computes and stores, and end it afterwards, so that whoever waits goes on at once.

    An error of the image itself is remembered: every other replica would meet it, too.
    """
    heart = asyncio.create_task(_beat(leases, lease))
    try:
        yield
    except ImageError as error:
        await _quietly_fail(leases, lease, error)
        raise
    except BaseException:
        # Also where the work was given up.
        await asyncio.shield(_quietly_release(leases, lease))
        raise
    else:
        await _quietly_release(leases, lease)
    finally:
        heart.cancel()


async def _beat(leases: Leases, lease: Lease) -> None:
    while True:
        await asyncio.sleep(leases.ttl_s / _RENEWALS)
        try:
            if not await leases.renew(lease):
                # This process stood still, or the store forgot: the other computes the same.
                log.warning("lease lost to another replica", key=lease.key)
                LEASES_LOST.inc()
                return
        except StoreUnavailable as error:
            log.debug("lease not renewed", cause=error.message)


async def _quietly_fail(leases: Leases, lease: Lease, error: ImageError) -> None:
    try:
        await leases.fail(lease, error)
    except StoreUnavailable as lost:
        log.debug("failure not remembered", cause=lost.message)


async def _quietly_release(leases: Leases, lease: Lease) -> None:
    try:
        await leases.release(lease)
    except StoreUnavailable as lost:
        log.debug("lease not released", cause=lost.message)
