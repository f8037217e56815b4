"""`samovar gateway`: the same as `python -m gateway`."""

from __future__ import annotations

from gateway.__main__ import run
from gateway.settings import GatewaySettings
from sam.command import settings_command

command = settings_command(
    "gateway",
    GatewaySettings,
    run,
    "Run a gateway replica: the HTTP routes in front of the encoders and decoders.",
)
