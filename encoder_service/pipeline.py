"""From the bytes of a picture to its embedding: decode and resize on threads, encode on the device."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog
import torch

from encoder_service import metrics
from encoder_service.batching import DeviceQueue
from encoder_service.limits import ImageLimits
from encoder_service.preprocessing import Content, PreparedImage, prepare_image
from encoder_service.waiting import Ticket
from sam.embedding import Embedding, ModelIdentity
from sam.errors import ImageError
from sam.quantization import quantize, restore
from sam.settings import EmbeddingDtype
from sam.tensors import all_finite
from sam.tracing import record, span

log = structlog.get_logger("encoder_service.pipeline")

_TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Computed:
    """An embedding that was just computed, and how long that took."""

    embedding: Embedding
    queue_s: float
    """Seconds spent waiting, for a decoding thread and for the device."""

    encode_s: float
    """Seconds spent decoding, resizing and on the device."""


class EncodingPipeline:
    """Computes embeddings of encoded pictures for one model. Knows nothing of what is stored."""

    def __init__(
        self,
        model: ModelIdentity,
        queue: DeviceQueue,
        limits: ImageLimits,
        *,
        decode_threads: int,
        dtype: EmbeddingDtype,
    ) -> None:
        """Take the parts.

        Args:
            model: whose embeddings these are.
            queue: the device's; closed with this object.
            limits: what a picture may cost.
            decode_threads: how many pictures are decoded at once.
            dtype: how embeddings will be stored: so their features are rounded.
        """
        self._model = model
        self._queue = queue
        self._limits = limits
        self._dtype = dtype
        self._threads = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._decoding = 0
        # Pictures in bulk leave a thread to others.
        self._bulk_threads = asyncio.Semaphore(max(1, decode_threads - 1))

    async def embed(self, content: Content, image_digest: str, ticket: Ticket | None = None) -> Computed:
        """Compute the embedding of an encoded picture.

        Cancelling it keeps what has not been started from ever being so.

        Args:
            content: the picture.
            image_digest: its SHA-256 in hexadecimal digits, or what stands for that of a part.
            ticket: says whether the device has started, and whether others go first.

        Raises:
            Overloaded: too many pictures wait already; nothing was decoded.
            ImageTooLarge, ImageUndecodable, RequestInvalid: see `prepare_image`.
            EncoderUnavailable, InternalError: see `DeviceQueue.embed`.
        """
        ticket = ticket or Ticket()
        self._queue.check_room(self._decoding, bulk=ticket.bulk)
        self._decoding += 1
        metrics.PREPARING_IMAGES.inc()
        submitted = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            async with self._bulk_threads if ticket.bulk else nullcontext():
                prepared, started = await loop.run_in_executor(self._threads, self._prepare, content)
        except ImageError as error:
            log.info("image refused", image_digest=image_digest, reason=error.reason)
            metrics.REFUSED_IMAGES.labels(error.reason).inc()
            raise
        finally:
            self._decoding -= 1
            metrics.PREPARING_IMAGES.dec()
        decoded = time.monotonic()
        record("queue", submitted, started)
        record("decode image", started, decoded)
        with span("embed image"):
            result = await self._queue.embed(prepared.pixels, ticket=ticket)
            record("queue", decoded, decoded + result.queue_s)
            record("encode image", decoded + result.queue_s, decoded + result.queue_s + result.encode_s)
        # Not on the decoding threads: what is done must not wait for what has just begun.
        features = await asyncio.to_thread(self._as_features, result.embedding)
        embedding = Embedding(
            features=features,
            image_digest=image_digest,
            original_size=prepared.original_size,
            model=self._model.name,
            model_fingerprint=self._model.fingerprint,
            quantized=self._dtype == "int8",
        )
        queue_s, encode_s = started - submitted + result.queue_s, decoded - started + result.encode_s
        log.info("image encoded", image_digest=image_digest, queue_s=round(queue_s, 4), encode_s=round(encode_s, 4))
        return Computed(embedding, queue_s=queue_s, encode_s=encode_s)

    async def close(self) -> None:
        """Finish what was accepted and end all threads."""
        await self._queue.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, content: Content) -> tuple[PreparedImage, float]:
        started = time.monotonic()
        prepared = prepare_image(content.data, self._limits, content.crop)
        metrics.PREPARE_SECONDS.observe(time.monotonic() - started)
        return prepared, started

    def _as_features(self, embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
        """Round an embedding to what will be stored of it: who finds it there has the same numbers."""
        if self._dtype == "int8":
            return restore(quantize(embedding))
        # In torch: numpy rounds to float16 in twenty times as long.
        rounded = torch.from_numpy(embedding).to(_TORCH_DTYPES[self._dtype], copy=True)
        features: npt.NDArray[np.floating] = rounded.numpy()
        if not all_finite(features):
            # float16 ends at 65,504. SAM's embeddings end near 1, so this is a checkpoint to be served as float32.
            raise FloatingPointError("an embedding does not fit into float16; set embedding_dtype to float32")
        features.flags.writeable = False
        return features
