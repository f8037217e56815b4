"""What the encoder accepts, as values. Imports nothing heavy, so that settings can be read without it."""

from __future__ import annotations

from dataclasses import dataclass, field

from encoder_service.addresses import AllowedHosts

DEFAULT_FORMATS = ("JPEG", "PNG", "WEBP")
"""The formats decoded unless a setting adds others, by Pillow's names."""

OPTIONAL_FORMATS = ("BMP", "GIF", "TIFF")
"""The formats that a setting may add, by Pillow's names."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost before it is refused."""

    max_bytes: int = 20 * 2**20
    """The size of the encoded picture, in bytes."""

    max_pixels: int = 64 * 2**20
    """Width times height. Checked before the pixels are allocated. Pillow itself stops at 178,956,970.

    While a picture is decoded it takes up to 16 bytes for each pixel: 1 GiB at this default. That is for a WebP, whose
    decoder keeps three copies with four channels, and for a PNG that is animated apart from its default image; the
    others take 5 to 12 bytes. `make hostile` measures them.
    """

    max_aspect: int = 2048
    """Longest side over shortest side. Beyond 2048 SAM's resize leaves a side of 0 pixels."""

    formats: tuple[str, ...] = DEFAULT_FORMATS
    """The formats decoded, by Pillow's names: of `DEFAULT_FORMATS` and `OPTIONAL_FORMATS`."""


@dataclass(frozen=True)
class FetchLimits:
    """What the encoder fetches, and how long it tries."""

    enabled: bool = True
    """Whether URLs are fetched at all."""

    allow_http: bool = False
    """Whether plain http is allowed besides https."""

    allowed_hosts: AllowedHosts = field(default_factory=AllowedHosts)
    """Private hosts that may be fetched from all the same."""

    max_bytes: int = 20 * 2**20
    """The size of the picture's file, in bytes."""

    connect_timeout_s: float = 5.0
    """Seconds for one connection: TCP and TLS."""

    total_timeout_s: float = 15.0
    """Seconds for everything: look-up, redirects and body."""

    max_redirects: int = 3
    """Redirects followed."""

    max_fetches: int = 32
    """Downloads at once; further ones are turned away. Each holds up to `max_bytes`."""


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait for the device."""

    max_images: int = 64
    """Pictures queued, those on the device not counted."""

    max_bytes: int = 256 * 2**20
    """Their resized pixels, in bytes; one picture has at most 3 MiB."""
