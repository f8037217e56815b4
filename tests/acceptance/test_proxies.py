"""nginx and haproxy in front, configured as docs/proxies.md prints it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest

from sam.errors import EmbeddingNotFound, ImageUndecodable
from samovar.client import SamClient
from samovar.client.grpc import SamGrpcClient
from samovar.client.pictures import encode_png
from tests.acceptance.conftest import ROOT, program
from tests.conftest import free_port
from tests.integration.processes import Process

PAGE = (ROOT / "docs" / "proxies.md").read_text()
START_S = 20.0
UPLOAD_BYTES = 15_000_000


class Proxy:
    """A running proxy: its ports for HTTP, the encoder and the decoder."""

    def __init__(self, ports: list[int]) -> None:
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.encoder, self.decoder = (f"127.0.0.1:{port}" for port in ports[1:])


def printed(name: str, server: Process, ports: list[int]) -> str:
    """Return a configuration of the page, with the addresses of this test in place of its own."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found
    text = found[1]
    for step, port in enumerate(ports):
        assert str(8001 + step) in text
        assert str(9001 + step) in text
        text = re.sub(rf"\b{8001 + step}\b", str(port), text)
        text = re.sub(rf"\b{9001 + step}\b", str(server.port + step), text)
    return text


def nginx(folder: Path, configuration: str) -> list[str]:
    """Write nginx's file and return its command line."""
    # Workers keep root's identity where root runs the tests, so that they may use the test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    places = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; {user} pid {folder}/pid; error_log stderr warn; events {{}}\n"
        f"http {{ access_log off; {places}\n{configuration}}}\n"
    )
    return [program("nginx"), "-p", str(folder), "-c", str(file)]


def haproxy(folder: Path, configuration: str) -> list[str]:
    """Write haproxy's file and return its command line."""
    file = folder / "haproxy.cfg"
    file.write_text(configuration)
    return [program("haproxy"), "-db", "-f", str(file)]


@contextmanager
def running(command: list[str], url: str, log: Path) -> Iterator[None]:
    """Run a proxy until the block is left; it passes requests on entry."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + START_S
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                if httpx2.get(f"{url}/readiness", timeout=2, trust_env=False).status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module", params=[nginx, haproxy], ids=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, server: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of `samovar serve`."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    ports = [free_port() for _ in range(3)]
    command = request.param(folder, printed(request.param.__name__, server, ports))
    standing = Proxy(ports)
    with running(command, standing.url, folder / "log"):
        yield standing


@pytest.fixture(scope="module")
def large() -> bytes:
    """A picture file of 15 MB, as a good camera makes one."""
    content = encode_png(np.random.default_rng(7).integers(0, 256, (2240, 2240, 3), np.uint8))
    assert len(content) > UPLOAD_BYTES
    return content


def test_large_uploads_pass_over_http(proxy: Proxy, large: bytes) -> None:
    """15 MB, 20 MB in base64, are embedded and segmented, and an embedding of 4 MiB comes back."""
    with SamClient(proxy.url) as client:
        picture = client.embed(large, "large")
        assert picture.size == (2240, 2240)
        assert client.segment(picture, box=[100, 100, 2000, 2000]).masks.shape == (1, 2240, 2240)
        assert client.embedding("large").shape == (1, 256, 64, 64)


def test_large_uploads_pass_over_grpc(proxy: Proxy, large: bytes) -> None:
    """15 MB in one message are embedded; health checks of the channels pass as well, or nothing would."""
    with SamGrpcClient(encoder=proxy.encoder, decoder=proxy.decoder) as client:
        picture = client.embed(large + b"over gRPC")
        result = client.segment(picture, box=[100, 100, 2000, 2000])
        assert result.masks.shape == (1, 2240, 2240)
        assert client.embedding(picture.image_id).shape == (1, 256, 64, 64)


def test_names_pass_unchanged(proxy: Proxy) -> None:
    """An image id with slashes, dots, spaces and percent signs is the same behind the proxy."""
    name = "a//b/../c d%2Fe?f#g"
    with SamClient(proxy.url) as client:
        client.embed(encode_png(np.zeros((8, 8, 3), np.uint8)), name)
        assert client.find(name) is not None
        assert client.forget(name)


def test_errors_pass_unchanged(proxy: Proxy) -> None:
    """What the services say, proxies leave as it is, over HTTP and over gRPC."""
    with SamClient(proxy.url) as client:
        with pytest.raises(EmbeddingNotFound) as caught:
            client.embedding("nothing")
        assert caught.value.metadata["request_id"]
        with pytest.raises(ImageUndecodable, match="Could not load input image"):
            client.embed(b"no picture")
    with SamGrpcClient(encoder=proxy.encoder, decoder=proxy.decoder) as grpc_client:
        with pytest.raises(EmbeddingNotFound):
            grpc_client.embedding("nothing")
        with pytest.raises(ImageUndecodable, match="Could not load input image"):
            grpc_client.embed(b"no picture")
