"""Whether requests would be tried."""

from __future__ import annotations

import asyncio

from gateway.clients import Services


class Readiness:
    """Asks the services for their health. A lost store is none of its business: pictures still segment without one."""

    def __init__(self, services: Services) -> None:
        """Watch these services."""
        self._services = services
        self.draining = False

    async def missing(self) -> list[str]:
        """Return the services of which no replica serves."""
        encoder, decoder = await asyncio.gather(
            self._services.encoder.is_serving(), self._services.decoder.is_serving()
        )
        return [name for name, serving in (("encoder", encoder), ("decoder", decoder)) if not serving]
