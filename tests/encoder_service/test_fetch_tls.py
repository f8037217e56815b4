"""Pictures fetched over https: the server must be the one that the URL names."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from aiohttp import web

from encoder_service.addresses import AllowedHosts, IpAddress
from encoder_service.fetch import ImageFetcher
from encoder_service.limits import FetchLimits
from sam.errors import ImageUrlFailed
from tests.encoder_service.hosts import BODY, PATIENCE_S, answer_picture

NAME = "pictures.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for one name, signed by itself, in one file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate, both = folder / "key", folder / "certificate", folder / "both"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([program, "req", "-x509", *options, *subject, *files], check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


def _fetch(certificate: Path, name: str, *, trusted: bool) -> bytes:
    """Fetch from a server with that certificate under a name that resolves to it."""

    async def to_loopback(host: str, port: int) -> list[IpAddress]:
        return [ipaddress.ip_address("127.0.0.1")]

    async def scenario() -> bytes:
        server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server_side.load_cert_chain(certificate)
        application = web.Application()
        application.router.add_get("/x", answer_picture)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_side).start()
        port = runner.addresses[0][1]
        limits = FetchLimits(allowed_hosts=AllowedHosts([f"127.0.0.1:{port}"]))
        tls = ssl.create_default_context(cafile=str(certificate)) if trusted else None
        fetcher = ImageFetcher(limits, resolve=to_loopback, tls=tls)
        try:
            return await fetcher.fetch(f"https://{name}:{port}/x")
        finally:
            fetcher.close()
            await runner.cleanup()

    return asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_a_server_with_a_certificate_for_its_name_is_fetched_from(certificate: Path) -> None:
    """Connecting to a checked address keeps the name for TLS."""
    assert _fetch(certificate, NAME, trusted=True) == BODY


@pytest.mark.parametrize(("name", "trusted"), [(NAME, False), ("other.example", True)])
def test_a_server_that_cannot_prove_its_name_is_not(certificate: Path, name: str, trusted: bool) -> None:
    """A certificate that nobody trusted has signed, or one for another name, ends the download."""
    with pytest.raises(ImageUrlFailed):
        _fetch(certificate, name, trusted=trusted)
