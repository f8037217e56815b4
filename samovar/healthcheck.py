"""`samovar healthcheck`: the health check of our containers, which need no curl and no grpcurl for it.

A container runs this every few seconds, so it imports little.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def _file(flag: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return an option that the server's own variable fills in as well."""
    variable = "SAMOVAR_" + flag.removeprefix("--").replace("-", "_").upper()
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option(flag, metavar="FILE", type=kind, envvar=variable, show_envvar=True, help=text)


_timeout = click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="How long the service may take to answer, in seconds.",
)


@click.group()
def command() -> None:
    """Ask a service whether it is ready. Exit status 0: it is. 1: it is not, and standard error says why."""


@command.command("grpc")
@click.argument("target", metavar="HOST:PORT")
@click.option("--service", default="", help="The full name of a service, such as sam.v1.DecoderService.")
@_file("--grpc-tls-cert", "The server's own certificate: it is asked over TLS, and has to show this one.")
@_file("--grpc-tls-client-ca", "Given if the server asks for a client's certificate.")
@_file("--grpc-tls-client-cert", "The one to show it. Left out: the server's own, which may be for both.")
@_file("--grpc-tls-client-key", "The private key of that.")
@_file("--grpc-tls-key", "The private key of the server's own.")
@_timeout
def check_grpc(
    target: str,
    service: str,
    grpc_tls_cert: Path | None,
    grpc_tls_client_ca: Path | None,
    grpc_tls_client_cert: Path | None,
    grpc_tls_client_key: Path | None,
    grpc_tls_key: Path | None,
    timeout_s: float,
) -> None:
    """Ask a gRPC server by the standard grpc.health.v1.

    In the server's own environment, its settings say whether and how to speak TLS.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if grpc_tls_cert is None:
        channel = grpc.insecure_channel(target, options=options)
    else:
        asked = grpc_tls_client_ca is not None
        key_file, cert_file = grpc_tls_client_key or grpc_tls_key, grpc_tls_client_cert or grpc_tls_cert
        key, cert = (_content(file) if asked and file else None for file in (key_file, cert_file))
        # Nothing but that very certificate is trusted, so whatever name it has is the right one.
        if grpc_tls_key is not None and (names := _names_of(grpc_tls_cert, grpc_tls_key)):
            options.append(("grpc.ssl_target_name_override", names[0].replace("*", "any")))
        credentials = grpc.ssl_channel_credentials(_content(grpc_tls_cert), key, cert)
        channel = grpc.secure_channel(target, credentials, options=options)
    with channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            # Any: the types of this package leave the methods out.
            stub: Any = health_pb2_grpc.HealthStub(channel)
            response = stub.Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise click.ClickException(f"{target}: {error.code().name}") from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        raise click.ClickException(f"{target}: {status}")
    click.echo(f"{target}: {status}")


@command.command("http")
@click.argument("url")
@_file("--http-tls-cert", "The server's own certificate: it is asked over TLS, and has to show this one.")
@_timeout
def check_http(url: str, http_tls_cert: Path | None, timeout_s: float) -> None:
    """Ask an HTTP server: any answer of 2xx is good.

    In the server's own environment, its settings say whether to speak TLS.
    """
    if not url.startswith(("http://", "https://")):
        raise click.UsageError("URL must start with http:// or https://.")
    # A proxy of the environment would be asked for the container's own loopback.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if http_tls_cert is not None:
        url = "https://" + url.partition("://")[2]
        handlers.append(urllib.request.HTTPSHandler(context=_trusting(http_tls_cert)))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(url, timeout=timeout_s) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        error.close()
        raise click.ClickException(f"{url}: HTTP {error.code}") from None
    except OSError as error:
        raise click.ClickException(f"{url}: {getattr(error, 'reason', error)}") from None
    click.echo(f"{url}: HTTP {status}")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None


def _names_of(cert: Path, key: Path) -> list[str]:
    """Return the names that a certificate is for."""
    from sam.errors import StartupError
    from sam.tls import check_pair

    try:
        return check_pair(cert, key, shown_by_server=True)
    except StartupError as error:
        raise click.ClickException(str(error)) from None


def _trusting(cert: Path) -> ssl.SSLContext:
    """Return a context that trusts this certificate, whatever its name, and no other."""
    _content(cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cert)
    except ssl.SSLError:
        raise click.ClickException(f"{cert}: no certificate in PEM form") from None
    return context
