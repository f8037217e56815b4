"""The client of the HTTP routes that blocks; `samovar.client.http_async` has the one to be awaited."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeVar, Unpack

import httpx2
import numpy as np
import numpy.typing as npt

from sam.tls import Tls
from samovar.client.errors import DeadlineExceeded, ServerUnreachable
from samovar.client.everything import Everything, EverythingOptions, OnProgress
from samovar.client.http_answers import HttpAnswer
from samovar.client.http_core import EmbeddingDtype, HttpCore, HttpRequest
from samovar.client.pictures import Picture, PictureLike, StoredPicture
from samovar.client.prompts import Prompt
from samovar.client.results import Segmentation
from samovar.client.steps import Patience, Steps, drive

T = TypeVar("T")

_PIECE_BYTES = 2**18
_SHORTEST_S = 0.001


class SamClient:
    """A client that blocks. Threads may share it; its connections are kept until it is closed.

    Every call takes a `timeout_s` of its own and ends within it, attempts, pauses and all: a server that is overloaded
    or has lost a part is asked again, not before the time it names; one that does not answer is tried a few times.

    Every call raises:
        SamovarError: what the server says, a class for each reason: see `samovar.client.errors`.
        ServerUnreachable: nothing answers there.
        AnswerUnreadable: what answers is no Samovar server.
    """

    def __init__(
        self,
        url: str = "http://localhost:9001",
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        tls: Tls | None = None,
        http: httpx2.Client | None = None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            url: where the gateway is.
            api_key: yours, where the operator has configured keys; it also keeps your image_ids yours.
            timeout_s: how long a call may take, unless it says otherwise.
            tls: whose certificates to trust, where the server's is not one that this machine trusts anyway.
            http: an HTTP client of your own instead, for proxies; it remains yours to close.

        Raises:
            StartupError: a file of `tls` cannot be used.
            ValueError: `tls` is given for an address that is not https, or beside an HTTP client of your own.
        """
        self._url = url.rstrip("/")
        self._core = HttpCore(api_key, Patience(timeout_s))
        if http is not None and tls is not None:
            raise ValueError("tls and http exclude each other: give your own HTTP client its certificates yourself.")
        self._http = http or httpx2.Client(verify=verification(tls, url))
        self._owns_http = http is None

    def embed(
        self,
        picture: PictureLike,
        image_id: str | None = None,
        *,
        bulk: bool = False,
        timeout_s: float | None = None,
    ) -> Picture:
        """Have a picture embedded, which is the expensive part, and kept to be segmented.

        Args:
            picture: a path, an https URL, the bytes of a file (JPEG, PNG, WebP), or RGB pixels (uint8, height x width
                x 3).
            image_id: a name of your own for it, at most 256 characters; left out: the SHA-256 of its file.
            bulk: whether it is one of many that can wait while people click on others.
            timeout_s: how long this may take.

        Raises:
            OSError: there is no such file.
            ImageError: it is no picture, or too large, or its URL cannot be used.
        """
        return self._run(self._core.embed(picture, image_id, bulk, timeout_s))

    def segment(
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
        """Predict the masks of what each prompt points at.

        A picture that `embed` returned is named, not sent; should the server have forgotten it, or have given its name
        to another picture, it is sent again. What is returned is always about this picture.

        Args:
            picture: what `embed` returned, or anything that `embed` takes.
            point_coords: N x 2, (x, y) in pixels of the picture.
            point_labels: N, 1 on the object and 0 off it; left out: all on it.
            box: (x_min, y_min, x_max, y_max) in pixels of the picture.
            mask_input: the `logits` of an earlier result for this picture, 256 x 256 or 1 x 256 x 256.
            prompts: more prompts, decoded in the same call; their masks follow.
            multimask_output: True: three masks for each prompt. False: one. Left out: one, for a single point the
                best of three.
            mask_threshold: the logit above which a pixel belongs to the mask.
            logits: whether to return the logits as well: 256 KiB a mask.
            timeout_s: how long this may take.

        Raises:
            PromptInvalid, RequestInvalid: there is no prompt, or one makes no sense.
        """
        prompt = Prompt(point_coords, point_labels, box, mask_input)
        return self._run(
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

    def segment_everything(
        self,
        picture: Picture | PictureLike,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        **options: Unpack[EverythingOptions],
    ) -> Everything:
        """Predict the masks of all that a grid of points finds, as SAM's automatic mask generator does.

        It takes as long as a thousand clicks. Leaving early, by an exception of `on_progress` say, stops the work.

        Args:
            picture: what `embed` returned, or anything that `embed` takes.
            on_progress: is told how far the work is, again and again.
            timeout_s: how long this may take.
            options: those of the generator; see `EverythingOptions`.

        Raises:
            RequestInvalid: an option makes no sense.
            RequestTooLarge: more was found than the server returns.
        """
        return self._run(self._core.segment_everything(picture, options, on_progress, timeout_s))

    def find(self, image_id: str, *, timeout_s: float | None = None) -> StoredPicture | None:
        """Return what is stored under an image_id, or None; this extends its expiry.

        Raises:
            RequestInvalid: the image_id ends in `.npy`, by which this route names files.
        """
        return self._run(self._core.find(image_id, timeout_s))

    def embedding(
        self, image_id: str, dtype: EmbeddingDtype = "float32", *, timeout_s: float | None = None
    ) -> npt.NDArray[np.floating]:
        """Return a stored embedding, 1 x 256 x 64 x 64 (batch, channels, height, width).

        Raises:
            EmbeddingNotFound: nothing is stored under that image_id.
        """
        return self._run(self._core.embedding(image_id, dtype, timeout_s))

    def forget(self, image_id: str, *, purge: bool = False, timeout_s: float | None = None) -> bool:
        """Forget an image_id, with `purge` its embedding as well; return whether there was one."""
        return self._run(self._core.forget(image_id, purge, timeout_s))

    def models(self, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the models served, as `/model/registry` lists them."""
        return self._run(self._core.models(timeout_s))

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        """Close on exit."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        return drive(steps, self._send)

    def _send(self, request: HttpRequest) -> HttpAnswer:
        until = time.monotonic() + request.timeout_s
        # The library's time-outs are for one read or write each. So they are set anew for each stage of a request, and
        # what is sent or received in pieces is watched piece by piece.
        timeouts: dict[str, float] = {}

        def set_timeouts(*_: object) -> None:
            left_s = max(_SHORTEST_S, until - time.monotonic())
            timeouts.update(dict.fromkeys(("connect", "read", "write", "pool"), left_s))

        def check() -> None:
            if time.monotonic() >= until:
                raise too_late(self._url, request)

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(request.content), _PIECE_BYTES):
                check()
                yield request.content[start : start + _PIECE_BYTES]

        headers = dict(request.headers)
        if request.content:
            # Otherwise pieces would be sent without their total, which some proxies do not take.
            headers["Content-Length"] = str(len(request.content))
        set_timeouts()
        content, lines = bytearray(), request.lines()
        try:
            with self._http.stream(
                request.method,
                self._url + request.path,
                content=pieces() if request.content else None,
                headers=headers,
                extensions={"timeout": timeouts, "trace": set_timeouts},
            ) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if lines:
                        lines.take(piece)
                    check()
                return HttpAnswer(response.status_code, lowered(response.headers), bytes(content))
        except httpx2.HTTPError as error:
            raise explained(self._url, request, error) from error


def verification(tls: Tls | None, url: str) -> ssl.SSLContext | bool:
    """Return how the HTTP library is to look at certificates.

    Raises:
        StartupError: a file of `tls` cannot be used.
        ValueError: nothing would be encrypted.
    """
    if tls is None:
        return True
    if not url.lower().startswith("https://"):
        raise ValueError(f"tls is for a server at https://..., and this one is at {url}.")
    return tls.context()


def lowered(headers: httpx2.Headers) -> dict[str, str]:
    """Return headers with their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def too_late(url: str, request: HttpRequest) -> DeadlineExceeded:
    """Return the error for a server that took too long."""
    return DeadlineExceeded(f"{url} did not answer within {request.timeout_s:.1f} s.")


def explained(url: str, request: HttpRequest, error: httpx2.HTTPError) -> Exception:
    """Return the error of ours that an error of the HTTP library stands for."""
    if isinstance(error, httpx2.TimeoutException):
        return too_late(url, request)
    return ServerUnreachable(f"Nothing answers at {url} ({error}). Check that the server runs, and its address.")
