"""The picture of a request: its bytes or its URL, and what identifies it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from gateway.schemas import REFUSED_IMAGE_TYPES, Image
from sam.errors import ImageUndecodable, RequestInvalid
from sam.v1 import image_pb2

_DATA_URI = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)
_WHITESPACE = re.compile(r"\s+")

_REFUSALS = {
    "numpy": "a pickle would run whatever code its sender put in",
    "numpy_object": "a pickle would run whatever code its sender put in",
    "pil": "a Python object cannot travel in JSON",
    "file": "it names a file on the server's own disk",
    "multipart": "the routes take JSON bodies only",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the caller sent it.

    Attributes:
        content: the bytes of its file; empty if a URL was sent.
        url: where the encoder is to download it from; empty if the bytes were sent.
        digest: the SHA-256 of `content`, 64 lower-case hexadecimal digits; empty if a URL was sent.
    """

    content: bytes
    url: str
    digest: str

    def to_message(self) -> image_pb2.Image:
        """Return the picture as the encoder takes it."""
        return image_pb2.Image(url=self.url) if self.url else image_pb2.Image(content=self.content)


def read_picture(image: Image) -> Picture:
    """Take the picture out of a body. It is not decoded here, but decoding base64 and hashing take their time.

    Raises:
        RequestInvalid: its type is refused, or its value is not text.
        ImageUndecodable: its base64 is broken.
    """
    if image.type in REFUSED_IMAGE_TYPES:
        raise RequestInvalid(
            f"Images of type '{image.type}' are refused: {_REFUSALS[image.type]}. Send 'base64' or 'url'.",
            field="image.type",
        )
    if not isinstance(image.value, str):
        raise RequestInvalid(f"The value of a {image.type} image is a string.", field="image.value")
    if image.type == "url":
        url = image.value.strip()
        if not url:
            raise RequestInvalid("The URL of the image is empty.", field="image.value")
        return Picture(b"", url, "")
    content = _decode_base64(image.value)
    return Picture(content, "", hashlib.sha256(content).hexdigest())


def _decode_base64(text: str) -> bytes:
    prefix = _DATA_URI.match(text, 0, 256)
    if prefix is not None:
        text = text[prefix.end() :]
    try:
        content = _strictly(text)
    except ValueError:
        try:
            # Line breaks are legal in MIME's base64 and rare: only then is a copy without them worth its time.
            content = _strictly(_WHITESPACE.sub("", text))
        except ValueError:
            raise ImageUndecodable(
                "Could not load input image. Cause: its value is not base64. Send the picture's file in base64.",
                field="image.value",
            ) from None
    if not content:
        raise ImageUndecodable("Could not load input image. Cause: its value is empty.", field="image.value")
    return content


def _strictly(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError from error
