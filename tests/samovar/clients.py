"""The clients under test: the blocking ones as they are, the asynchronous ones behind the same methods."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import httpx2

from samovar.client import AsyncSamClient, SamClient
from samovar.client.grpc import AsyncSamGrpcClient, SamGrpcClient

T = TypeVar("T")


class _Awaiting:
    """Calls the methods of an asynchronous client and waits for them."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._made(make))

    async def _made(self, make: Callable[[], Any]) -> Any:
        return make()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._runner.run(method(*args, **kwargs))

        return call

    def __enter__(self) -> _Awaiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@contextmanager
def http_client(kind: str, url: str, **options: Any) -> Iterator[SamClient]:
    """Make a client of the HTTP routes: `blocking` or `async`. Proxies of the environment are left out."""
    if kind == "blocking":
        with httpx2.Client(trust_env=False) as http, SamClient(url, http=http, **options) as client:
            yield client
        return
    with _Awaiting(lambda: _Closing(url, **options)) as awaiting:
        yield cast(SamClient, awaiting)


class _Closing(AsyncSamClient):
    """Closes the HTTP client that it was given, too."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, http=httpx2.AsyncClient(trust_env=False), **options)
        self._owns_http = True


def grpc_client(kind: str, **options: Any) -> SamGrpcClient:
    """Return a client of the services: `blocking` or `async`."""
    if kind == "blocking":
        return SamGrpcClient(**options)
    return cast(SamGrpcClient, _Awaiting(lambda: AsyncSamGrpcClient(**options)))


def signatures(client: type) -> dict[str, list[tuple[str, Any, Any]]]:
    """Return the public methods of a client with their parameters' names, kinds and defaults."""
    return {
        name: [(parameter.name, parameter.kind, parameter.default) for parameter in _parameters(method)]
        for name, method in vars(client).items()
        if inspect.isfunction(method) and (not name.startswith("_") or name == "__init__")
    }


def _parameters(method: Callable[..., Any]) -> list[inspect.Parameter]:
    return [parameter for parameter in inspect.signature(method).parameters.values() if parameter.name != "http"]
