"""The embedding store over Redis: what it does when Redis is lost, stalls, is full or refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from sam.embedding import Alias
from sam.embedding_store import EmbeddingStore, RedisBackend
from sam.embedding_store.redis_clients import describe
from sam.errors import StoreUnavailable
from sam.geometry import Size
from sam.patience import begin_to_doubt
from tests.conftest import RedisServer, free_port, start_redis
from tests.sam.test_embedding_store import ALIAS, DIGEST, MODEL, an_embedding, run


async def _refused(call: Awaitable[object]) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        await call
    return caught.value


def test_a_lost_redis_is_an_error_within_its_time_out() -> None:
    """Without a Redis every call fails with StoreUnavailable, quickly, and none pretends that nothing is stored."""

    async def test() -> None:
        backend = RedisBackend(f"redis://127.0.0.1:{free_port()}/0", timeout_s=0.3)
        store = EmbeddingStore(backend, MODEL, ttl_s=60)
        started = time.monotonic()
        await _refused(store.load_alias("t", "x"))
        await _refused(store.load_embedding("t", DIGEST))
        await _refused(store.store_embedding("t", an_embedding()))
        assert time.monotonic() - started < 10
        await store.close()

    run(test)


def test_redis_is_used_again_soon_after_it_is_back(tmp_path: Path) -> None:
    """After Redis was killed and started again, the same store works without being rebuilt."""

    async def test() -> None:
        server = start_redis(tmp_path)
        store = EmbeddingStore(RedisBackend(server.url, timeout_s=0.5), MODEL, ttl_s=60)
        await store.store_alias("t", "x", ALIAS)
        server.stop()
        await _refused(store.load_alias("t", "x"))
        server = start_redis(tmp_path, port=server.port)
        back_at = time.monotonic()
        while True:
            try:
                assert await store.load_alias("t", "x") is None
                break
            except StoreUnavailable:
                assert time.monotonic() - back_at < 20
                await asyncio.sleep(0.05)
        await store.close()
        server.stop()

    run(test)


def test_a_full_redis_refuses_without_failing(tmp_path: Path) -> None:
    """A Redis at its memory limit that evicts nothing makes storing answer False, not fail."""

    async def test() -> None:
        server = start_redis(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
        store = EmbeddingStore(RedisBackend(server.url, timeout_s=2), MODEL, ttl_s=60)
        stored = [await store.store_embedding("t", an_embedding(f"{n:064x}")) for n in range(4)]
        assert not stored[-1]
        assert await store.load_embedding("t", f"{3:064x}") is None
        await store.close()
        server.stop()

    run(test)


def test_a_wrong_password_is_told_apart_and_not_repeated(tmp_path: Path) -> None:
    """A refused login says so in one line, without the password."""

    async def test() -> None:
        server = start_redis(tmp_path, "--requirepass", "right-horse")
        backend = RedisBackend(f"redis://:wrong-horse@127.0.0.1:{server.port}/0", timeout_s=1)
        error = await _refused(backend.reach())
        assert "refuses this user" in error.message
        assert "horse" not in error.message
        await backend.close()
        server.stop()

    run(test)


def test_a_foreign_redis_type_under_a_key_is_dropped(redis_server: RedisServer) -> None:
    """A list where a record should be is dropped and reported absent."""

    async def test() -> None:
        store = EmbeddingStore(RedisBackend(redis_server.url, timeout_s=2), MODEL, ttl_s=60)
        key = store.embedding_key("t", DIGEST)
        with redis_server.client() as client:
            client.lpush(key, "x")
            assert await store.load_embedding("t", DIGEST) is None
            assert not client.exists(key)
        await store.close()

    run(test)


def test_few_redis_commands_are_needed(tmp_path: Path) -> None:
    """The store works for a Redis user without scripts, KEYS and CONFIG, and on keys of its own prefix only."""

    async def test() -> None:
        commands = "+get +getex +set +del +exists +expire +publish +subscribe +unsubscribe +ping +hello +client|setname"
        acl = f"user samovar on >pw ~sam:* &sam:* -@all {commands}"
        (tmp_path / "acl").write_text(f"user default off\n{acl}\n")
        server = start_redis(tmp_path, "--aclfile", str(tmp_path / "acl"))
        backend = RedisBackend(f"redis://samovar:pw@127.0.0.1:{server.port}/0", timeout_s=2)
        for ttl_s in (0, 60):
            store = EmbeddingStore(backend, MODEL, ttl_s=ttl_s)
            await backend.reach()
            await store.store_embedding("t", an_embedding())
            assert await store.load_embedding("t", DIGEST) is not None
            assert await store.extend_embedding("t", DIGEST)
            await store.store_alias("t", "x", ALIAS)
            await store.load_alias("t", "x")
            await store.delete_alias("t", "x")
            await store.delete_embedding("t", DIGEST)
        await _tell_somebody_who_waits(backend)
        await backend.close()
        server.stop()

    run(test)


def test_a_missing_permission_is_found_at_the_start(tmp_path: Path) -> None:
    """A Redis user that may not do all that is needed is refused when a service starts, not at its first request."""

    async def test() -> None:
        (tmp_path / "acl").write_text(
            "user default off\nuser samovar on >pw ~sam:* &sam:* -@all +get +getex +ping +hello\n"
        )
        server = start_redis(tmp_path, "--aclfile", str(tmp_path / "acl"))
        backend = RedisBackend(f"redis://samovar:pw@127.0.0.1:{server.port}/0", timeout_s=2)
        assert "NOPERM" in (await _refused(backend.reach())).message
        await backend.close()
        server.stop()

    run(test)


def test_a_redis_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    """A service that starts a moment before its Redis does not give up."""

    async def test() -> None:
        port = free_port()
        backend = RedisBackend(f"redis://127.0.0.1:{port}/0", timeout_s=0.5)
        reaching = asyncio.create_task(backend.reach())
        await asyncio.sleep(0.3)
        server = await asyncio.to_thread(lambda: start_redis(tmp_path, port=port))
        await reaching
        await backend.close()
        server.stop()

    run(test)


def test_a_redis_that_never_comes_is_given_up(tmp_path: Path) -> None:
    """A service that starts without a Redis says so after some seconds."""

    async def test() -> None:
        backend = RedisBackend(f"redis://127.0.0.1:{free_port()}/0", timeout_s=0.5)
        started = time.monotonic()
        await _refused(backend.reach())
        assert time.monotonic() - started < 15
        await backend.close()

    run(test)


def test_a_stalled_redis_costs_one_time_out(own_redis: RedisServer) -> None:
    """While Redis stands still only the first calls wait for it; once it goes on, it is used again by itself."""

    async def test() -> None:
        store = EmbeddingStore(RedisBackend(own_redis.url, timeout_s=0.5), MODEL, ttl_s=60)
        await store.store_alias("t", "x", ALIAS)
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            await asyncio.gather(*(_refused(store.load_alias("t", "x")) for _ in range(200)))
            # One after the other, each would wait for half a second.
            assert time.monotonic() - started < 20
            started = time.monotonic()
            for _ in range(200):
                await _refused(store.load_alias("t", "x"))
            assert time.monotonic() - started < 20
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            while await _is_lost(store):  # noqa: ASYNC110 - there is no event for this
                await asyncio.sleep(0.02)
        assert await store.load_alias("t", "x") == ALIAS
        await store.close()

    run(test)


def test_an_image_id_that_could_not_be_moved_is_bound_to_nothing(own_redis: RedisServer) -> None:
    """What an image_id was bound to before a failed move does not come back with Redis: it would be another picture."""

    async def test() -> None:
        store = EmbeddingStore(RedisBackend(own_redis.url, timeout_s=1), MODEL, ttl_s=60)
        for image_id in ("moved", "kept"):
            await store.store_alias("t", image_id, ALIAS)
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            await _refused(store.store_alias("t", "moved", Alias("11" * 32, Size(1, 1))))
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        async with asyncio.timeout(10):
            while await _is_lost(store):  # noqa: ASYNC110 - there is no event for this
                await asyncio.sleep(0.02)
        assert await store.load_alias("t", "moved") is None
        assert await store.load_alias("t", "kept") == ALIAS
        await store.close()

    run(test)


def test_a_slow_command_is_waited_for_while_redis_answers_others(own_redis: RedisServer) -> None:
    """A command that takes longer than its time-out is no loss of Redis as long as that shows signs of life."""

    async def test() -> None:
        backend = RedisBackend(own_redis.url, timeout_s=0.4)
        store = EmbeddingStore(backend, MODEL, ttl_s=60)
        with own_redis.client() as other:
            # Redis holds back what writes, and goes on answering the rest.
            other.client_pause(1000, all=False)
        started = time.monotonic()
        await store.store_alias("t", "x", ALIAS)
        assert time.monotonic() - started > 0.4
        assert await store.load_alias("t", "x") == ALIAS
        with own_redis.client() as other:
            other.client_pause(20_000, all=False)
        started = time.monotonic()
        await _refused(store.store_alias("t", "y", ALIAS))
        assert time.monotonic() - started < 19, "it was waited for without end"
        with own_redis.client() as other:
            other.client_unpause()
        await store.close()

    run(test)


def test_a_call_that_doubts_the_store_does_not_wait_for_it(own_redis: RedisServer) -> None:
    """Whose request has waited for Redis elsewhere sees at once that it stands still, and uses it if it does not."""

    async def test() -> None:
        store = EmbeddingStore(RedisBackend(own_redis.url, timeout_s=10), MODEL, ttl_s=60)
        other = EmbeddingStore(RedisBackend(own_redis.url, timeout_s=10), MODEL, ttl_s=60)
        await store.store_alias("t", "x", ALIAS)

        async def doubting() -> Alias | None:
            begin_to_doubt()
            # The second command does not ask for a sign of life again.
            await store.load_alias("t", "y")
            return await store.load_alias("t", "x")

        async def doubting_in_vain() -> None:
            begin_to_doubt()
            for _ in range(20):
                await _refused(store.load_alias("t", "x"))
            await _refused(other.store_alias("t", "x", Alias("11" * 32, Size(1, 1))))

        assert await asyncio.create_task(doubting()) == ALIAS
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            await asyncio.create_task(doubting_in_vain())
            assert time.monotonic() - started < 9, "it waited for a whole time-out"
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        # What others do is not touched by it.
        assert await store.load_alias("t", "nothing") is None
        # Only what could not be bound is forgotten, as after any failed move.
        async with asyncio.timeout(10):
            while await store.load_alias("t", "x") is not None:  # noqa: ASYNC110 - there is no event for this
                await asyncio.sleep(0.02)
        await store.close()
        await other.close()

    run(test)


async def _is_lost(store: EmbeddingStore) -> bool:
    try:
        await store.load_alias("t", "anything")
    except StoreUnavailable:
        return True
    return False


async def _tell_somebody_who_waits(backend: RedisBackend) -> None:
    """Wait for a notice with no other way out, and give it until it arrives."""
    waiting = asyncio.create_task(backend.wait("sam:v1:x", timeout_s=60))
    async with asyncio.timeout(10):
        while not waiting.done():
            await backend.tell("sam:v1:x")
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "redis+sentinel://127.0.0.1:1",
        "redis+sentinel://127.0.0.1:1/name/db",
        "redis+sentinel:///name",
        "redis+cluster://127.0.0.1:1/0",
        "redis+cluster://",
        "redis+cluster://host:port",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    """A URL of another form than those documented raises, before anything connects."""
    with pytest.raises(ValueError, match=r"[Rr]edis|URL|Port|Sentinels"):
        RedisBackend(url, timeout_s=1)


def test_secrets_in_a_url_are_not_shown() -> None:
    """What a URL is called in logs and messages has its hosts and no user or password."""
    hosts = {
        "redis://me:secret@one:1/2": "one:1/2",
        "redis://one": "one:6379",
        "redis+sentinel://me:secret@one:1,two/name/0": "one:1,two:26379/name/0",
        "redis+cluster://:secret@one,two:7": "one:6379,two:7",
        "unix:///run/redis.sock": "/run/redis.sock",
    }
    assert {url: describe(url) for url in hosts} == hosts
