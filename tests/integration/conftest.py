"""What the tests of whole stacks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RedisServer, start_redis


@pytest.fixture(scope="module")
def redis_of_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The stack's Redis."""
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()
