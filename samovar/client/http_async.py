"""The client of the HTTP routes for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2
import numpy as np
import numpy.typing as npt

from sam.tls import Tls
from samovar.client.everything import Everything, EverythingOptions, OnProgress
from samovar.client.http import explained, lowered, too_late, verification
from samovar.client.http_answers import HttpAnswer
from samovar.client.http_core import EmbeddingDtype, HttpCore, HttpRequest
from samovar.client.pictures import Picture, PictureLike, StoredPicture
from samovar.client.prompts import Prompt
from samovar.client.results import Segmentation
from samovar.client.steps import Patience, Steps, drive_async

T = TypeVar("T")


class AsyncSamClient:
    """`SamClient` to be awaited; see there. It belongs to one event loop."""

    def __init__(
        self,
        url: str = "http://localhost:9001",
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        tls: Tls | None = None,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        """See `SamClient`."""
        self._url = url.rstrip("/")
        self._core = HttpCore(api_key, Patience(timeout_s))
        if http is not None and tls is not None:
            raise ValueError("tls and http exclude each other: give your own HTTP client its certificates yourself.")
        self._http = http or httpx2.AsyncClient(verify=verification(tls, url))
        self._owns_http = http is None

    async def embed(
        self,
        picture: PictureLike,
        image_id: str | None = None,
        *,
        bulk: bool = False,
        timeout_s: float | None = None,
    ) -> Picture:
        """See `SamClient.embed`."""
        return await self._run(self._core.embed(picture, image_id, bulk, timeout_s))

    async def segment(
        self,
        picture: Picture | PictureLike,
        *,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.NDArray[np.floating] | None = None,
        prompts: Sequence[Prompt] | None = None,
        multimask_output: bool | None = None,
        mask_threshold: float = 0.0,
        logits: bool = False,
        timeout_s: float | None = None,
    ) -> Segmentation:
        """See `SamClient.segment`."""
        prompt = Prompt(point_coords, point_labels, box, mask_input)
        return await self._run(
            self._core.segment(
                picture,
                prompt,
                prompts,
                multimask_output=multimask_output,
                mask_threshold=mask_threshold,
                logits=logits,
                timeout_s=timeout_s,
            )
        )

    async def segment_everything(
        self,
        picture: Picture | PictureLike,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        **options: Unpack[EverythingOptions],
    ) -> Everything:
        """See `SamClient.segment_everything`; `on_progress` is called on the event loop."""
        return await self._run(self._core.segment_everything(picture, options, on_progress, timeout_s))

    async def find(self, image_id: str, *, timeout_s: float | None = None) -> StoredPicture | None:
        """See `SamClient.find`."""
        return await self._run(self._core.find(image_id, timeout_s))

    async def embedding(
        self, image_id: str, dtype: EmbeddingDtype = "float32", *, timeout_s: float | None = None
    ) -> npt.NDArray[np.floating]:
        """See `SamClient.embedding`."""
        return await self._run(self._core.embedding(image_id, dtype, timeout_s))

    async def forget(self, image_id: str, *, purge: bool = False, timeout_s: float | None = None) -> bool:
        """See `SamClient.forget`."""
        return await self._run(self._core.forget(image_id, purge, timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """See `SamClient.models`."""
        return await self._run(self._core.models(timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Close on exit."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._send)

    async def _send(self, request: HttpRequest) -> HttpAnswer:
        try:
            async with (
                asyncio.timeout(request.timeout_s),
                self._http.stream(
                    request.method,
                    self._url + request.path,
                    content=request.content,
                    headers=request.headers,
                    timeout=None,
                ) as response,
            ):
                content, lines = bytearray(), request.lines()
                async for piece in response.aiter_bytes():
                    content += piece
                    if lines:
                        lines.take(piece)
                return HttpAnswer(response.status_code, lowered(response.headers), bytes(content))
        except TimeoutError as error:
            raise too_late(self._url, request) from error
        except httpx2.HTTPError as error:
            raise explained(self._url, request, error) from error
