"""The Redis that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from sam.embedding_store.backend import Backend
from sam.embedding_store.redis import RedisBackend
from sam.embedding_store.traced import traced
from sam.errors import StartupError

if TYPE_CHECKING:
    from sam.settings import StoreSettings


def open_redis(settings: StoreSettings) -> Backend:
    """Prepare the backend in the Redis of `redis_url`, which is set; nothing is connected yet.

    Raises:
        StartupError: the URL is not one of a Redis, or the file of its password cannot be used.
    """
    url = settings.redis_url or ""
    if settings.redis_password_file is not None:
        url = with_password(url, settings.redis_password_file)
    try:
        return traced(RedisBackend(url, timeout_s=settings.redis_timeout_s))
    except ValueError as error:
        raise StartupError(f"--redis-url is no URL of a Redis such as redis://host:6379/0: {error}.") from None


def with_password(url: str, file: Path) -> str:
    """Return the URL with the password that a file holds.

    Raises:
        StartupError: the file cannot be read or is empty, or the URL has a password already.
    """
    try:
        password = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StartupError(f"The password file of the Redis, {file}, cannot be read: {cause}.") from None
    if not password:
        raise StartupError(f"The password file of the Redis, {file}, is empty.")
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    if ":" in user:
        raise StartupError("Both --redis-url and --redis-password-file have a password. Take it out of the URL.")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{hosts}"))
