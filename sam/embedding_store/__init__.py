"""Where embeddings are kept: one store, two backends."""

from sam.embedding_store.backend import Backend
from sam.embedding_store.counted import CountedBackend
from sam.embedding_store.in_process import InProcessBackend
from sam.embedding_store.leases import Lease, Leases
from sam.embedding_store.opening import open_redis
from sam.embedding_store.redis import RedisBackend
from sam.embedding_store.store import EmbeddingStore

__all__ = [
    "Backend",
    "CountedBackend",
    "EmbeddingStore",
    "InProcessBackend",
    "Lease",
    "Leases",
    "RedisBackend",
    "open_redis",
]
