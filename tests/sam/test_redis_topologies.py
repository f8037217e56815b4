"""Redis behind Sentinels and as a cluster, by URL, each with real processes and through a failover."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from sam.embedding_store import EmbeddingStore, Leases, RedisBackend
from sam.errors import StoreUnavailable
from tests.conftest import RedisServer, free_port, start_redis
from tests.sam.test_embedding_store import MODEL, an_embedding

pytestmark = pytest.mark.faults

PATIENCE_S = 60.0
LOST_AFTER_MS = 1000


def digest_of(number: int) -> str:
    return f"{number:064x}"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; what it raises while servers start means that it does not yet."""
    until = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < until, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.1)


def _replication(server: RedisServer) -> dict[str, Any]:
    with server.client() as client:
        told: dict[str, Any] = client.info("replication")
        return told


def _seen_by(sentinel: RedisServer) -> tuple[int, int]:
    """Return how many other Sentinels and replicas a Sentinel knows."""
    with sentinel.client() as client:
        told: Any = client.sentinel_master("cups")
        return told["num-other-sentinels"], told["num-slaves"]


def _knows(node: RedisServer, nodes: int) -> bool:
    with node.client() as client:
        command: Any = client.execute_command
        return bool(command("CLUSTER INFO")["cluster_state"] == "ok" and len(command("CLUSTER NODES")) == nodes)


@pytest.fixture
def processes() -> Iterator[list[RedisServer]]:
    """The servers of a test, killed at its end."""
    servers: list[RedisServer] = []
    yield servers
    for server in servers:
        server.stop()


def start_in(processes: list[RedisServer], folder: Path, *options: str, port: int | None = None) -> RedisServer:
    folder.mkdir(parents=True, exist_ok=True)
    server = start_redis(folder, *options, port=port)
    processes.append(server)
    return server


@pytest.fixture
def behind_sentinels(processes: list[RedisServer], tmp_path: Path) -> tuple[str, RedisServer]:
    """Three Sentinels that watch a master with a replica: their URL, and the master."""
    master = start_in(processes, tmp_path / "master")
    replica = start_in(processes, tmp_path / "replica", "--replicaof", f"127.0.0.1 {master.port}")
    wait_until(lambda: _replication(replica)["master_link_status"] == "up", "the replica follows its master")
    sentinels = []
    for number in range(3):
        folder = tmp_path / f"sentinel{number}"
        folder.mkdir()
        port = free_port()
        (folder / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor cups 127.0.0.1 {master.port} 2\n"
            f"sentinel down-after-milliseconds cups {LOST_AFTER_MS}\nsentinel failover-timeout cups 5000\n"
        )
        process = subprocess.Popen(
            ["redis-server", str(folder / "sentinel.conf"), "--sentinel"], stdout=subprocess.DEVNULL
        )
        processes.append(RedisServer(port, folder, process))
        sentinels.append(processes[-1])
    wait_until(
        lambda: all(_seen_by(sentinel) == (2, 1) for sentinel in sentinels),
        "every Sentinel knows the replica and the other Sentinels",
    )
    hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    return f"redis+sentinel://{hosts}/cups/0", master


@pytest.fixture
def cluster(processes: list[RedisServer], tmp_path: Path) -> tuple[str, list[RedisServer]]:
    """A cluster of three masters, each with a replica: its URL, and the masters."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(LOST_AFTER_MS)]
    options += ["--cluster-require-full-coverage", "no"]
    nodes = [
        start_in(processes, tmp_path / f"node{number}", *options, "--cluster-port", str(free_port()))
        for number in range(6)
    ]
    addresses = [f"127.0.0.1:{node.port}" for node in nodes]
    create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"]
    subprocess.run(create, check=True, capture_output=True, timeout=PATIENCE_S)
    wait_until(lambda: all(_knows(node, len(nodes)) for node in nodes), "every node knows the whole cluster")
    roles = {node.port: _replication(node) for node in nodes}
    masters = [node for node in nodes if roles[node.port]["role"] == "master"]
    wait_until(
        lambda: all(node in masters or _replication(node)["master_link_status"] == "up" for node in nodes),
        "every replica follows its master",
    )
    return "redis+cluster://" + ",".join(addresses[:2]), masters


async def store_and_load(url: str, victim: RedisServer) -> int:
    """Store and load embeddings of a hundred pictures while a master is killed; return how often the store was lost.

    What is loaded must be what was stored under that digest, or nothing. In the end all of it must work again, with the
    same store, without being rebuilt.
    """
    backend = RedisBackend(url, timeout_s=0.5)
    await backend.reach()
    store = EmbeddingStore(backend, MODEL, ttl_s=600)
    lost = 0
    embeddings = [an_embedding(digest_of(number), seed=number) for number in range(8)]
    for turn in range(40):
        if turn == 10:
            victim.stop()
        for embedding in embeddings:
            try:
                await store.store_embedding("t", embedding)
                loaded = await store.load_embedding("t", embedding.image_digest)
                assert loaded is None or np.array_equal(loaded.features, embedding.features)
            except StoreUnavailable:
                lost += 1
        await asyncio.sleep(0.02)
    async with asyncio.timeout(PATIENCE_S):
        waiting = set(range(len(embeddings)))
        while waiting:
            for number in list(waiting):
                with contextlib.suppress(StoreUnavailable):
                    if await store.store_embedding("t", embeddings[number]):
                        loaded = await store.load_embedding("t", digest_of(number))
                        assert loaded is not None
                        assert np.array_equal(loaded.features, embeddings[number].features)
                        waiting.discard(number)
            await asyncio.sleep(0.05)
    await a_lease_is_handed_over(backend)
    await backend.close()
    return lost


async def a_lease_is_handed_over(backend: RedisBackend) -> None:
    """A lease is granted once, and who waits for it is told of its end."""
    leases = Leases(backend, 60, poll_s=60)
    held = await leases.acquire("sam:v1:lease:{x}")
    assert held is not None
    assert await leases.acquire("sam:v1:lease:{x}") is None
    waiting = asyncio.create_task(leases.wait("sam:v1:lease:{x}"))
    async with asyncio.timeout(PATIENCE_S):
        while not waiting.done():
            await leases.release(held)
            await asyncio.sleep(0.05)


def test_a_failover_of_sentinels(behind_sentinels: tuple[str, RedisServer]) -> None:
    """When the master dies, the store follows the Sentinels to the new one, and never returns anything wrong."""
    url, master = behind_sentinels
    assert asyncio.run(store_and_load(url, master)) > 0, "the master's death was not noticed: nothing was tested"


def test_a_failover_of_a_cluster(cluster: tuple[str, list[RedisServer]]) -> None:
    """When a master of a cluster dies, the store follows its slots to the replica, and never returns anything wrong."""
    url, masters = cluster
    asyncio.run(store_and_load(url, masters[0]))
