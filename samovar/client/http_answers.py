"""What the answers of the HTTP routes mean."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sam.errors import InternalError, Overloaded, RequestInvalid, by_reason
from sam.geometry import Size
from samovar.client.errors import AnswerUnreadable, ServerUnreachable
from samovar.client.everything import Everything, found_mask_of
from samovar.client.pictures import Picture, Source
from samovar.client.results import Segmentation

# What a proxy says when the server behind it does not answer.
_PROXY_STATUSES = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def error_of(answer: HttpAnswer) -> Exception:
    """Return what an answer that is no success says: the server's own error, if it is one."""
    try:
        body = json.loads(answer.content)
        kind = by_reason().get(body["reason"])
        message = str(body["message"])
        metadata = {str(name): str(value) for name, value in (body.get("metadata") or {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        if answer.status == Overloaded.http_status:
            message = "A proxy answered with HTTP 429: it lets no more requests through at the moment."
            return Overloaded(message, retry_after_s=_number(answer.headers.get("retry-after")))
        if answer.status in _PROXY_STATUSES:
            return ServerUnreachable(f"A proxy answered with HTTP {answer.status}: no server stands behind it.")
        return unreadable(answer)
    if kind is None:
        # A newer server may know more reasons than this client.
        kind = RequestInvalid if answer.status < 500 else InternalError
    if request_id := body.get("request_id"):
        metadata["request_id"] = str(request_id)
    retry_after_s = _number(answer.headers.get("retry-after"))
    return kind(message, field=body.get("field"), retry_after_s=retry_after_s, metadata=metadata)


def _number(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None


def json_of(answer: HttpAnswer) -> dict[str, Any]:
    """Return the JSON object that an answer holds.

    Raises:
        AnswerUnreadable: it holds none.
    """
    try:
        body = json.loads(answer.content)
    except ValueError:
        raise unreadable(answer) from None
    if not isinstance(body, dict):
        raise unreadable(answer)
    return body


def picture_of(body: dict[str, Any], source: Source) -> Picture:
    """Return what an answer says of its picture.

    Raises:
        AnswerUnreadable: it does not say it.
    """
    try:
        size = size_of(body["original_size"])
        return Picture(body["image_id"], body["image_digest"], size, body["model"], body["cached"], source)
    except (KeyError, TypeError, ValueError):
        raise AnswerUnreadable("The answer lacks what a Samovar server says of a picture.") from None


def size_of(pair: Sequence[int]) -> Size:
    """Return (height, width).

    Raises:
        TypeError, ValueError: it is no pair of numbers.
    """
    height, width = pair
    return Size(int(height), int(width))


def segmentation_of(answer: HttpAnswer, picture: Picture) -> Segmentation:
    """Return the masks of an answer: an object with run lengths, or a `.npz` file.

    Raises:
        AnswerUnreadable: there are none.
    """
    request_id, timings = answer.headers.get("x-request-id", ""), _timings(answer.headers.get("server-timing", ""))
    try:
        if answer.headers.get("content-type", "").startswith("application/octet-stream"):
            with np.load(io.BytesIO(answer.content), allow_pickle=False) as file:
                masks, logits = file["masks"], file["low_res_masks"]
                scores, indices = file["scores"], file["prompt_indices"]
            # The file says itself how large the picture is.
            named = replace(picture, size=size_of(masks.shape[1:]))
            return Segmentation(
                named, scores, indices, masks=masks, logits=logits, request_id=request_id, timings_ms=timings
            )
        body = json_of(answer)
        counts = [mask["counts"] for mask in body["masks"]]
        scores, indices = body["scores"], body["prompt_indices"]
        return Segmentation(picture, scores, indices, counts=counts, request_id=request_id, timings_ms=timings)
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise unreadable(answer) from None


def everything_of(answer: HttpAnswer, source: Source) -> Everything:
    """Return the masks of an answer that is one object, or a stream of lines whose last has them.

    Raises:
        SamovarError: the last line says why there are none.
        AnswerUnreadable: there are none.
    """
    if answer.headers.get("content-type", "").startswith("application/x-ndjson"):
        *_, last = answer.content.rstrip(b"\n").split(b"\n")
        line = json_of(replace(answer, content=last))
        if "error" in line:
            raise _streamed_error(line["error"])
        body = line.get("result")
    else:
        body = json_of(answer)
    if not isinstance(body, dict):
        raise unreadable(answer)
    try:
        masks = [found_mask_of(record) for record in body["masks"]]
    except (KeyError, TypeError, ValueError):
        raise unreadable(answer) from None
    return Everything(picture_of(body, source), masks, request_id=answer.headers.get("x-request-id", ""))


def _streamed_error(body: Any) -> Exception:
    """Return the error in the last line of a stream, which says in its body what a header would."""
    headers = {"retry-after": str(body["retry_after_s"])} if isinstance(body, dict) and "retry_after_s" in body else {}
    return error_of(HttpAnswer(InternalError.http_status, headers, json.dumps(body).encode()))


def _timings(header: str) -> dict[str, float]:
    """Return the stages of `Server-Timing`, in milliseconds."""
    out = {}
    for entry in header.split(","):
        name, _, duration = entry.strip().partition(";dur=")
        milliseconds = _number(duration or None)
        if milliseconds is not None:
            out[name] = milliseconds
    return out


def unreadable(answer: HttpAnswer) -> AnswerUnreadable:
    """Return the error for an answer that makes no sense."""
    return AnswerUnreadable(
        f"What answers there (HTTP {answer.status}) is no Samovar server, or one of another age. Check the address."
    )
