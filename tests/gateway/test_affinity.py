"""Clicks on one picture go to one decoder, over real gRPC servers: found, watched, lost and left."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.affinity.replicas import Replicas
from gateway.affinity.targets import Listed, Named, look_up, read_target, target_of
from gateway.calls import Call
from gateway.clients import DECODER_SERVICE, DecoderClient
from sam.auth import KeyRing
from sam.errors import DecoderUnavailable, EmbeddingNotFound, StoreUnavailable
from sam.rpc.server import RpcServer
from sam.settings import RpcServerSettings
from sam.tls import Tls
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc as pb_grpc
from sam.v1 import image_pb2
from samovar.certs import CA, SERVER, SERVER_KEY, write_certificates
from tests.conftest import free_port
from tests.sam.test_rpc import EchoDecoder

PICTURES = [f"picture {number}" for number in range(12)]


class Decoder(EchoDecoder):
    """Counts clicks by picture; fails, or refuses as a server that goes, if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.clicks: list[str] = []
        self.error: Exception | None = None
        self.refuses = False

    async def SegmentImage(self, request: Any, context: Any) -> pb.SegmentImageResponse:  # noqa: N802 (the contract's name)
        """Note the click."""
        self.clicks.append(request.image.image_id)
        if self.refuses:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going")
        if self.error is not None:
            raise self.error
        return pb.SegmentImageResponse()


async def start(servicer: Decoder, port: int = 0, settings: RpcServerSettings | None = None) -> tuple[RpcServer, str]:
    """Start a server on loopback; return it and its address."""

    def add(server: Any) -> None:
        pb_grpc.add_DecoderServiceServicer_to_server(servicer, server)

    server = RpcServer(settings or RpcServerSettings(drain_s=2), DECODER_SERVICE, add, KeyRing())
    return server, f"127.0.0.1:{await server.start('127.0.0.1', port)}"


@asynccontextmanager
async def decoders(
    count: int, settings: RpcServerSettings | None = None
) -> AsyncIterator[tuple[list[Decoder], list[RpcServer], list[str]]]:
    """Run decoders; yield what answers, what serves, and the addresses."""
    servicers = [Decoder() for _ in range(count)]
    started = [await start(servicer, settings=settings) for servicer in servicers]
    try:
        yield servicers, [server for server, _ in started], [address for _, address in started]
    finally:
        await asyncio.gather(*(server.stop() for server, _ in started))


@asynccontextmanager
async def client(target: str, tls: Tls | None = None) -> AsyncIterator[DecoderClient]:
    """Open a client with affinity."""
    opened = DecoderClient(target, tls, affinity=True)
    try:
        yield opened
    finally:
        await opened.close()


async def click(decoder: DecoderClient, image_id: str) -> None:
    """Click on a picture."""
    now = time.monotonic()
    reference = image_pb2.ImageReference(image_id=image_id)
    await decoder.segment_image(pb.SegmentImageRequest(image=reference), Call("r", "", now, now + 20))


async def ready(decoder: DecoderClient, count: int) -> None:
    """Wait until so many replicas are chosen from."""
    assert decoder._replicas is not None
    await click(decoder, "warm")
    async with asyncio.timeout(15):
        while len(decoder._replicas.ready) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def places(servicers: list[Decoder]) -> dict[str, set[int]]:
    """Return which decoders were asked about each picture."""
    return {
        picture: {number for number, servicer in enumerate(servicers) if picture in servicer.clicks}
        for picture in PICTURES
    }


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine, bounded."""
    asyncio.run(asyncio.wait_for(test(), 60))


def test_each_picture_is_asked_about_at_one_replica() -> None:
    """Of three replicas each picture has one, all three have some, and two gateways agree."""

    async def test() -> None:
        async with decoders(3) as (servicers, _, addresses):
            target = "ipv4:" + ",".join(addresses)
            async with client(target) as one, client(target) as other:
                for gateway in (one, other):
                    await ready(gateway, 3)
                for gateway in (one, other, one):
                    await asyncio.gather(*(click(gateway, picture) for picture in PICTURES[:3]))
                    for picture in PICTURES[3:]:
                        await click(gateway, picture)
                found = places(servicers)
                # A picture may overflow; all of them do not.
                assert sum(len(where) == 1 for where in found.values()) >= 8
                assert set.union(*found.values()) == {0, 1, 2}

    run(test)


def test_a_replica_that_refuses_drains_or_is_gone_costs_no_click() -> None:
    """Its pictures go elsewhere at once, the others stay, and when it serves again they come back."""

    async def test() -> None:
        async with decoders(3) as (servicers, servers, addresses), client("ipv4:" + ",".join(addresses)) as gateway:
            await ready(gateway, 3)
            await click(gateway, "mine")
            owner = next(number for number, servicer in enumerate(servicers) if "mine" in servicer.clicks)
            servicers[owner].refuses = True
            await click(gateway, "mine")
            assert sum("mine" in servicer.clicks for servicer in servicers) == 2
            servicers[owner].refuses = False
            await click(gateway, "mine")
            assert servicers[owner].clicks.count("mine") == 3

            await servers[owner].report(serving=False)
            await ready(gateway, 2)
            await click(gateway, "mine")
            assert servicers[owner].clicks.count("mine") == 3
            await servers[owner].report(serving=True)
            await ready(gateway, 3)
            await click(gateway, "mine")
            assert servicers[owner].clicks.count("mine") == 4

            going = asyncio.create_task(servers[owner].drain())
            while not going.done():
                await click(gateway, "mine")
            for _ in range(20):
                await click(gateway, "mine")
            await ready(gateway, 2)

    run(test)


def test_what_a_replica_answers_is_not_asked_elsewhere() -> None:
    """Errors of the tree end the call, those of a lost store too, at whichever replica they are raised."""

    async def test() -> None:
        async with decoders(2) as (servicers, _, addresses), client("ipv4:" + ",".join(addresses)) as gateway:
            await ready(gateway, 2)
            for error in (EmbeddingNotFound("No."), StoreUnavailable("No.")):
                before = sum(len(servicer.clicks) for servicer in servicers)
                for servicer in servicers:
                    servicer.error = error
                with pytest.raises(type(error)):
                    await click(gateway, "x")
                assert sum(len(servicer.clicks) for servicer in servicers) == before + 1

    run(test)


def test_with_nobody_left_the_service_is_waited_for_as_without_affinity() -> None:
    """When all replicas stop and one starts again, calls that waited are answered; if none does, they are told."""

    async def test() -> None:
        ports = [free_port(), free_port()]
        async with client("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)) as gateway:
            servers = [(await start(Decoder(), port))[0] for port in ports]
            await ready(gateway, 2)
            await asyncio.gather(*(server.stop() for server in servers))
            waiting = [asyncio.create_task(click(gateway, picture)) for picture in PICTURES]
            await asyncio.sleep(0.3)
            again, _ = await start(Decoder(), ports[0])
            await asyncio.gather(*waiting)
            await again.stop()
            with pytest.raises(DecoderUnavailable):
                await click(gateway, "x")

    run(test)


def test_replicas_behind_a_name_are_found_and_left() -> None:
    """As a name stands for one, three and two addresses, so many replicas have the work, and no click fails."""

    async def test() -> None:
        async with decoders(3) as (servicers, _, addresses):
            current = addresses[:1]

            async def lookup(host: str, number: int) -> list[str]:
                if not current:
                    raise socket.gaierror("no such name")
                return current

            replicas = Replicas("decoder.test:50052", DECODER_SERVICE, None, pb_grpc.DecoderServiceStub, lookup)

            async def found(count: int) -> set[str]:
                async with asyncio.timeout(15):
                    while True:
                        replicas.refused()
                        list(replicas.near("anything"))
                        if len(replicas.ready) == count:
                            return set(replicas.ready)
                        await asyncio.sleep(0.05)

            assert await found(0) == set()
            current = addresses
            assert await found(3) == set(addresses)
            (held, *_) = replicas.near("held")
            with replicas.asking(held):
                current = [address for address in addresses if address != held.name]
                assert await found(2) == set(current)
                # What is under way there is not cut off.
                await held.stub.SegmentImage(pb.SegmentImageRequest())
            current = []
            await asyncio.sleep(1.5)
            assert len(await found(2)) == 2
            await replicas.close()
            assert sum(len(servicer.clicks) for servicer in servicers) == 1

    run(test)


def test_replicas_behind_a_name_have_its_certificate(tmp_path: Path) -> None:
    """Over TLS each address is held to the name by which it was found, or to the one that the settings give."""
    write_certificates(tmp_path, ("decoder",))
    served = RpcServerSettings(grpc_tls_cert=tmp_path / SERVER, grpc_tls_key=tmp_path / SERVER_KEY)

    async def test() -> None:
        async with decoders(2, served) as (_, _, addresses):

            async def lookup(host: str, number: int) -> list[str]:
                return addresses

            for name, server_name, fits in (("decoder", "", True), ("x", "decoder", True), ("x", "", False)):
                tls = Tls(tmp_path / CA, server_name=server_name)
                replicas = Replicas(f"{name}:50052", DECODER_SERVICE, tls, pb_grpc.DecoderServiceStub, lookup)
                async with asyncio.timeout(15):
                    for _ in range(30 if fits else 4):
                        list(replicas.near("anything"))
                        if len(replicas.ready) == 2:
                            break
                        await asyncio.sleep(0.25)
                assert len(replicas.ready) == (2 if fits else 0)
                await replicas.close()

    run(test)


def test_one_replica_costs_nothing_more() -> None:
    """With one address, or a target that gRPC alone can read, nothing is watched and nothing else is connected to."""

    async def test() -> None:
        async with decoders(1) as (servicers, _, addresses):
            for target in (addresses[0], f"ipv4:{addresses[0]}", f"dns:///{addresses[0]}"):
                async with client(target) as gateway:
                    await click(gateway, "x")
                    assert gateway._replicas is None
            assert servicers[0].clicks == ["x"] * 3
            async with client("unix:/nobody/is/there.sock") as gateway:
                assert gateway._replicas is None

    run(test)


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("ipv4:10.0.0.1:50052,10.0.0.2:50052", Listed(("10.0.0.1:50052", "10.0.0.2:50052"))),
        ("ipv6:[2001:db8::1]:50052", Listed(("[2001:db8::1]:50052",))),
        ("ipv4:10.0.0.1", None),
        ("10.0.0.1:50052", Listed(("10.0.0.1:50052",))),
        ("[::1]:50052", Listed(("[::1]:50052",))),
        ("::1:50052", None),
        ("decoder:50052", Named("decoder", 50052)),
        ("dns:decoder:50052", Named("decoder", 50052)),
        ("dns:///decoder.prod.svc:50052", Named("decoder.prod.svc", 50052)),
        ("dns://10.0.0.53/decoder:50052", None),
        ("dns:///decoder", None),
        ("unix:/run/decoder.sock", None),
        ("xds:///decoder", None),
    ],
)
def test_what_targets_say(target: str, place: Listed | Named | None) -> None:
    """Addresses and names are read as gRPC reads them; what only gRPC can read is left to it."""
    assert read_target(target) == place


def test_names_are_looked_up_by_the_system() -> None:
    """The addresses of a name come as targets, those of version 6 in brackets."""
    found = asyncio.run(look_up("localhost", 50052))
    assert "127.0.0.1:50052" in found
    assert asyncio.run(look_up("::1", 50052)) == ["[::1]:50052"]
    assert [target_of(address) for address in ("127.0.0.1:1", "[::1]:1")] == ["ipv4:127.0.0.1:1", "ipv6:[::1]:1"]
