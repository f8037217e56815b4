"""The file of API keys.

One key a line, plain or hashed, and after it, if anything, what is to be known of its holder:

    sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  name=alice rate=10/s concurrency=4
    a-plain-key

Blank lines and lines that begin with `#` are skipped. A hash keeps the file from being a list of keys; it is that of
keys which nobody can guess, such as `samovar keys new` makes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from sam.errors import StartupError
from sam.key_limits import NO_LIMITS, KeyLimits

HASHED = "sha256:"

_OPTION = re.compile(r"\s+([A-Za-z_]+)=(\S*)$")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)/(s|min)")
_SECONDS = {"s": 1, "min": 60}
_KEY = re.compile(r"[ -~]{1,1024}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key whose holder may call.

    Attributes:
        digest: its SHA-256.
        name: what logs call its holder; may be empty.
        limits: what it may ask of one replica.
    """

    digest: bytes = field(repr=False)
    name: str = ""
    limits: KeyLimits = NO_LIMITS


def digest_of(api_key: str) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(api_key.encode()).digest()


def read_keys(path: Path, defaults: KeyLimits) -> list[KnownKey]:
    """Return the keys of a file.

    Args:
        path: the file.
        defaults: the limits of keys whose lines say nothing of them.

    Raises:
        StartupError: the file cannot be read or holds no key, which would let everyone in; or a line cannot be
            understood. The message names the line, and nothing that stands in it.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise StartupError(f"The API keys file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise StartupError(f"The API keys file {path} is not a text file in UTF-8.") from None
    known: dict[bytes, tuple[int, KnownKey]] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            key = read_line(text, defaults)
        except ValueError as error:
            raise StartupError(f"The API keys file {path}, line {number}: {error}.") from None
        earlier, same = known.setdefault(key.digest, (number, key))
        if same != key:
            raise StartupError(
                f"The API keys file {path}, line {number}: the key of line {earlier} with other options."
            )
    if not known:
        raise StartupError(f"The API keys file {path} holds no key. Add one a line, or unset api_keys_file.")
    return [key for _, key in known.values()]


def read_line(text: str, defaults: KeyLimits) -> KnownKey:
    """Return the key of one line that holds one.

    Raises:
        ValueError: it cannot be understood. The message holds nothing of the line.
    """
    text, name, limits, seen = text.strip(), "", defaults, set[str]()
    while option := _OPTION.search(text):
        kind, value = option[1], option[2]
        text = text[: option.start()]
        if kind in seen:
            raise ValueError("one of name=, rate= and concurrency= stands there twice")
        seen.add(kind)
        if kind == "name":
            if not _NAME.fullmatch(value):
                raise ValueError("name= takes 1 to 64 letters, digits, '.', '_' and '-'")
            name = value
        elif kind == "rate":
            limits = replace(limits, rate_per_s=_rate(value))
        elif kind == "concurrency":
            if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
                raise ValueError("concurrency= is a whole number above 0; leave it out where there is no limit")
            limits = replace(limits, concurrency=int(value))
        else:
            # Not repeated: it may be a piece of a key.
            raise ValueError("after the key come name=, rate= and concurrency=, and nothing else with a '='")
    return KnownKey(_digest(text), name, limits)


def _digest(key: str) -> bytes:
    if not key.startswith(HASHED):
        if not _KEY.fullmatch(key):
            raise ValueError("a key is 1 to 1024 visible ASCII characters")
        return digest_of(key)
    digest = key.removeprefix(HASHED).lower()
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"after '{HASHED}' come 64 hexadecimal digits")
    return bytes.fromhex(digest)


def _rate(value: str) -> float:
    found = _RATE.fullmatch(value)
    if found is None or float(found[1]) <= 0:
        raise ValueError("rate= is a number above 0 for each second or minute, such as 10/s or 30/min")
    return float(found[1]) / _SECONDS[found[2]]
