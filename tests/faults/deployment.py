"""A deployment of real processes over a real Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.conftest import RedisServer, free_port, start_redis
from tests.faults.names import NameServer
from tests.faults.proxy import ChaosProxy, chaos_proxy
from tests.faults.replica import LOOPBACK, Replica

DECODER_NAME = "decoder.test"
"""What a name server knows decoders by."""


def stub(version: str = "1", *, encode_s: float = 0.05, decode_s: float = 0.002) -> dict[str, str]:
    """Return the settings of services with the stub model, which sleeps where a model computes."""
    return {
        "SAMOVAR_CHECKPOINT": f"stub:{version}?encode_s={encode_s}&decode_s={decode_s}",
        "SAMOVAR_LOG_FORMAT": "json",
    }


@dataclass
class Deployment:
    """Gateways, encoders and decoders over one Redis."""

    redis: RedisServer
    encoders: list[Replica]
    decoders: list[Replica]
    gateways: list[Replica]
    redis_proxy: ChaosProxy | None = None

    @property
    def replicas(self) -> list[Replica]:
        """All of them."""
        return [*self.encoders, *self.decoders, *self.gateways]

    @property
    def urls(self) -> list[str]:
        """The gateways."""
        return [gateway.url for gateway in self.gateways]

    @property
    def proxies(self) -> list[ChaosProxy]:
        """What stands between the parts."""
        proxies = [replica.proxy for replica in self.replicas if replica.proxy]
        return [*proxies, self.redis_proxy] if self.redis_proxy else proxies

    def repair(self) -> None:
        """Bring back what a test has lost, and wait until all of it is ready."""
        for proxy in self.proxies:
            proxy.heal()
        if self.redis.process.poll() is not None:
            self.restart_redis()
        for replica in self.replicas:
            if replica.alive:
                replica.thaw()
            else:
                replica.start()
        for replica in self.replicas:
            replica.wait()

    def restart_redis(self, *options: str) -> None:
        """Start Redis again where it was, empty."""
        self.redis.process = start_redis(self.redis.folder, *options, port=self.redis.port).process

    def encodes(self, digest: str) -> int:
        """Count how often a picture went through a model to its end."""
        return self.all_encodes()[digest]

    def all_encodes(self) -> Counter[str]:
        """Count, for each picture's digest, how often it went through a model to its end."""
        return Counter(
            str(event["image_digest"]) for encoder in self.encoders for event in encoder.events("image encoded")
        )

    def count_events(self, tier: Literal["encoders", "decoders", "gateways"], name: str, **fields: object) -> int:
        """Count the log lines of one kind, and with these fields, that a tier has written."""
        replicas: list[Replica] = getattr(self, tier)
        return sum(fields.items() <= event.items() for replica in replicas for event in replica.events(name))

    def answered_requests(self) -> list[str]:
        """Return the request id of each answer that a gateway has logged."""
        return [str(event.get("request_id")) for gateway in self.gateways for event in gateway.events("request")]


@contextmanager
def deployment(
    folder: Path,
    *,
    encoders: int = 2,
    decoders: int = 2,
    gateways: int = 1,
    environment: Mapping[str, str] | None = None,
    redis: RedisServer | None = None,
    redis_url: str | None = None,
    proxied: bool = False,
    decoders_behind: NameServer | None = None,
) -> Iterator[Deployment]:
    """Run the split roles until the block is left.

    Args:
        folder: for logs.
        encoders: how many.
        decoders: how many.
        gateways: how many.
        environment: settings of all processes; the stub model's, if it names no checkpoint.
        redis: the Redis to use; one of its own, if not given.
        redis_url: how the services address it, if not by its own URL.
        proxied: whether a chaos proxy stands in front of every part.
        decoders_behind: a name server to find decoders by, under `decoder.test`, of which it knows the first; they have
            one port, and an address each.
    """
    settings = {**stub(), **(environment or {})}
    with ExitStack() as running:
        if redis is None:
            redis = start_redis(_made(folder / "redis"))
            running.callback(lambda: redis.stop())
        redis_proxy = running.enter_context(chaos_proxy(redis.port)) if proxied else None
        url = redis_url or (f"redis://{redis_proxy.target}/0" if redis_proxy else redis.url)
        stored = {**settings, "SAMOVAR_REDIS_URL": url}

        def replica(module: str, number: int, own: dict[str, str], port: int = 0, host: str = LOOPBACK) -> Replica:
            port = port or free_port()
            proxy = running.enter_context(chaos_proxy(port)) if proxied else None
            new = Replica(module, port, folder / f"{module}-{number}", own, proxy, host)
            running.callback(_end, new)
            new.start()
            return new

        # Started together, because most of a start is reading torch from disk.
        encoding = [replica("encoder_service", number, dict(stored)) for number in range(encoders)]
        port = free_port() if decoders_behind else 0
        decoding = [
            replica("decoder_service", number, dict(stored), port, f"127.0.0.{number + 2}" if port else LOOPBACK)
            for number in range(decoders)
        ]
        targets = {
            "SAMOVAR_ENCODER_TARGET": "ipv4:" + ",".join(one.target for one in encoding),
            "SAMOVAR_DECODER_TARGET": "ipv4:" + ",".join(one.target for one in decoding),
        }
        if decoders_behind is not None:
            decoders_behind.set(DECODER_NAME, [decoding[0].host])
            targets["SAMOVAR_DECODER_TARGET"] = decoders_behind.target(DECODER_NAME, port)
        serving = [replica("gateway", number, {**settings, **targets}) for number in range(gateways)]
        for one in [*encoding, *decoding, *serving]:
            one.wait()
        yield Deployment(redis, encoding, decoding, serving, redis_proxy)


def _end(replica: Replica) -> None:
    if replica.alive:
        replica.kill()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
