"""`samovar healthcheck`: the health check of our containers, which need no curl and no grpcurl for it.

A container runs this every few seconds, so it imports little.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import click

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
@_timeout
def check_grpc(target: str, service: str, timeout_s: float) -> None:
    """Ask a gRPC server by the standard grpc.health.v1."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
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
@_timeout
def check_http(url: str, timeout_s: float) -> None:
    """Ask an HTTP server: any answer of 2xx is good."""
    if not url.startswith(("http://", "https://")):
        raise click.UsageError("URL must start with http:// or https://.")
    # A proxy of the environment would be asked for the container's own loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        error.close()
        raise click.ClickException(f"{url}: HTTP {error.code}") from None
    except OSError as error:
        raise click.ClickException(f"{url}: {getattr(error, 'reason', error)}") from None
    click.echo(f"{url}: HTTP {status}")
