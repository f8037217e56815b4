"""The HTTP client without its sockets: which requests a call makes, one after another."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from sam.errors import EmbeddingNotFound, RequestInvalid
from sam.geometry import Size
from samovar.client.everything import Everything, EverythingOptions, OnProgress, checked, telling
from samovar.client.http_answers import (
    HttpAnswer,
    error_of,
    everything_of,
    json_of,
    picture_of,
    segmentation_of,
    size_of,
    unreadable,
)
from samovar.client.pictures import Picture, PictureLike, Source, StoredPicture
from samovar.client.prompts import Prompt, all_prompts
from samovar.client.results import Segmentation
from samovar.client.steps import Deadline, Patience, Steps

EmbeddingDtype: TypeAlias = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request to send; it must be over `timeout_s` seconds from now.

    Where there is `on_line`, it is given each line of the answer as soon as it has come.
    """

    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    timeout_s: float
    on_line: Callable[[bytes], None] | None = None

    def lines(self) -> Lines | None:
        """Return what takes the pieces of the answer, if anything does."""
        return Lines(self.on_line) if self.on_line else None


class Lines:
    """Cuts pieces into lines, and hands on each once it is whole."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        """Hand lines on to this."""
        self._on_line = on_line
        self._rest = b""

    def take(self, piece: bytes) -> None:
        """Take what comes next."""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        for line in whole:
            self._on_line(line)


_IN_BACKGROUND = {"Priority": "u=7"}
"""Source: RFC 9218, section 4.1."""

_EVERYTHING = "/sam/segment_everything"

_NO_MORE: Mapping[str, str] = {}
"""Headers beside those of every call."""


class HttpCore:
    """The calls. See `SamClient` for what they do."""

    def __init__(self, api_key: str | None, patience: Patience) -> None:
        """Call as the holder of `api_key`."""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._patience = patience

    def embed(self, picture: PictureLike, image_id: str | None, bulk: bool, timeout_s: float | None) -> Steps[Picture]:
        """See `SamClient.embed`."""
        source = Source.of(picture)
        body = {"image": _image(source), "image_id": image_id, "format": "none"}
        deadline = self._patience.deadline(timeout_s)
        answer = yield from self._post("/sam/embed_image", body, deadline, _IN_BACKGROUND if bulk else _NO_MORE)
        return picture_of(json_of(answer), source)

    def segment(
        self,
        picture: Picture | PictureLike,
        prompt: Prompt,
        prompts: Sequence[Prompt] | None,
        *,
        multimask_output: bool | None,
        mask_threshold: float,
        logits: bool,
        timeout_s: float | None,
    ) -> Steps[Segmentation]:
        """See `SamClient.segment`."""
        deadline = self._patience.deadline(timeout_s)
        body = {
            "prompts": [each.to_json() for each in all_prompts(prompt, prompts)],
            "multimask_output": multimask_output,
            "mask_threshold": mask_threshold,
            # The masks of earlier calls come with the call here, so nothing is remembered, and every call can be sent
            # again.
            "use_mask_input_cache": False,
            "format": "binary" if logits else "rle",
        }
        if not isinstance(picture, Picture):
            return (yield from self._segment_source(Source.of(picture), None, body, deadline))
        try:
            answer = yield from self._post("/sam/segment_image", {"image_id": picture.image_id, **body}, deadline)
        except EmbeddingNotFound:
            return (yield from self._segment_source(picture.source, picture.image_id, body, deadline))
        if answer.headers.get("x-image-digest") == picture.digest:
            return segmentation_of(answer, picture)
        # Somebody has given the name to another picture. It is theirs now; ours goes by its digest.
        return (yield from self._segment_source(picture.source, None, body, deadline))

    def segment_everything(
        self,
        picture: Picture | PictureLike,
        options: EverythingOptions,
        on_progress: OnProgress | None,
        timeout_s: float | None,
    ) -> Steps[Everything]:
        """See `SamClient.segment_everything`."""
        deadline = self._patience.deadline(timeout_s)
        body = {**checked(options), "stream": on_progress is not None}

        def ask(source: Source, **image: Any) -> Steps[Everything]:
            content = json.dumps({**image, **body}).encode()

            def attempt() -> Steps[Everything]:
                on_line = telling(on_progress) if on_progress else None
                answer = yield from self._attempt("POST", _EVERYTHING, content, deadline, on_line=on_line)
                return everything_of(answer, source)

            return (yield from self._patience.retried(attempt, deadline))

        if not isinstance(picture, Picture):
            source = Source.of(picture)
            return (yield from ask(source, image=_image(source)))
        source = picture.source
        # Crops are cut from the picture itself.
        if not options.get("crop_n_layers"):
            try:
                found = yield from ask(source, image_id=picture.image_id)
            except EmbeddingNotFound:
                return (yield from ask(source, image=_image(source), image_id=picture.image_id))
            if found.picture.digest == picture.digest:
                return found
        # By its digest: somebody may have given the name to another picture.
        return (yield from ask(source, image=_image(source)))

    def find(self, image_id: str, timeout_s: float | None) -> Steps[StoredPicture | None]:
        """See `SamClient.find`."""
        if image_id.endswith(".npy"):
            raise RequestInvalid(
                "An image_id that ends in .npy cannot be looked up over HTTP, where that asks for the file.",
                field="image_id",
            )
        deadline = self._patience.deadline(timeout_s)
        try:
            answer = yield from self._ask("GET", _stored(image_id), b"", deadline)
        except EmbeddingNotFound:
            return None
        body = json_of(answer)
        try:
            return StoredPicture(
                image_id,
                body["image_digest"],
                size_of(body["original_size"]),
                body["model"],
                body["model_fingerprint"],
                body["expire_time"],
            )
        except (KeyError, TypeError, ValueError):
            raise unreadable(answer) from None

    def embedding(
        self, image_id: str, dtype: EmbeddingDtype, timeout_s: float | None
    ) -> Steps[npt.NDArray[np.floating]]:
        """See `SamClient.embedding`."""
        path = f"{_stored(image_id)}.npy?dtype={dtype}"
        answer = yield from self._ask("GET", path, b"", self._patience.deadline(timeout_s))
        try:
            array: npt.NDArray[np.floating] = np.load(io.BytesIO(answer.content), allow_pickle=False)
        except (ValueError, OSError, EOFError):
            raise unreadable(answer) from None
        return array

    def forget(self, image_id: str, purge: bool, timeout_s: float | None) -> Steps[bool]:
        """See `SamClient.forget`."""
        deadline = self._patience.deadline(timeout_s)
        path = f"{_stored(image_id)}?purge=true" if purge else _stored(image_id)
        tries = 0

        def attempt() -> Steps[bool]:
            nonlocal tries
            tries += 1
            try:
                yield from self._attempt("DELETE", path, b"", deadline)
            except EmbeddingNotFound:
                # After an attempt whose answer was lost, its absence is what that attempt achieved.
                return tries > 1
            return True

        return (yield from self._patience.retried(attempt, deadline))

    def models(self, timeout_s: float | None) -> Steps[list[dict[str, Any]]]:
        """See `SamClient.models`."""
        answer = yield from self._ask("GET", "/model/registry", b"", self._patience.deadline(timeout_s))
        models = json_of(answer).get("models")
        if not isinstance(models, list):
            raise unreadable(answer)
        return models

    def _segment_source(
        self, source: Source, image_id: str | None, body: dict[str, Any], deadline: Deadline
    ) -> Steps[Segmentation]:
        whole = {"image": _image(source), "image_id": image_id, **body}
        answer = yield from self._post("/sam/segment_image", whole, deadline)
        if body["format"] == "binary":
            # A file has no room for what the picture is called.
            digest = answer.headers.get("x-image-digest", "")
            model, cached = answer.headers.get("x-model", ""), answer.headers.get("x-cache") == "hit"
            return segmentation_of(answer, Picture(image_id or digest, digest, Size(0, 0), model, cached, source))
        return segmentation_of(answer, picture_of(json_of(answer), source))

    def _post(
        self, path: str, body: dict[str, Any], deadline: Deadline, headers: Mapping[str, str] = _NO_MORE
    ) -> Steps[HttpAnswer]:
        given = {name: value for name, value in body.items() if value is not None}
        return (yield from self._ask("POST", path, json.dumps(given).encode(), deadline, headers))

    def _ask(
        self, method: str, path: str, content: bytes, deadline: Deadline, headers: Mapping[str, str] = _NO_MORE
    ) -> Steps[HttpAnswer]:
        attempt = partial(self._attempt, method, path, content, deadline, headers)
        return (yield from self._patience.retried(attempt, deadline))

    def _attempt(
        self,
        method: str,
        path: str,
        content: bytes,
        deadline: Deadline,
        more: Mapping[str, str] = _NO_MORE,
        on_line: Callable[[bytes], None] | None = None,
    ) -> Steps[HttpAnswer]:
        left_s = deadline.left_s
        # The server gives up when nobody waits any more.
        headers = {**self._headers, **more, "X-Request-Timeout-Ms": str(max(1, math.ceil(min(left_s, 999_999) * 1000)))}
        if content:
            headers["Content-Type"] = "application/json"
        answer: HttpAnswer = yield HttpRequest(method, path, headers, content, left_s, on_line)
        if 200 <= answer.status < 300:
            return answer
        raise error_of(answer)


def _stored(image_id: str) -> str:
    return f"/sam/embeddings/{quote(image_id, safe='')}"


def _image(source: Source) -> dict[str, str]:
    if source.url:
        return {"type": "url", "value": source.url}
    return {"type": "base64", "value": base64.b64encode(source.content).decode("ascii")}
