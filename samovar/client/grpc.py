"""The clients of the services themselves, for backends: gRPC, without a gateway in between.

    from samovar.client.grpc import SamGrpcClient

    with SamGrpcClient(encoder="encoder:50051", decoder="decoder:50052") as client:
        picture = client.embed("photo.jpg")
        result = client.segment(picture, box=[100, 50, 500, 400])

Methods, arguments, results and errors are those of `SamClient`. Calls are spread over all replicas behind a name, and
those that are lost are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast

import grpc
import numpy as np
import numpy.typing as npt

from sam.rpc.channel import open_blocking_channel, open_channel
from sam.tls import Tls
from sam.v1 import decoder_service_pb2_grpc, embedding_pb2, encoder_service_pb2_grpc
from samovar.client.everything import Everything, EverythingOptions, OnProgress
from samovar.client.grpc_core import DECODER_SERVICE, ENCODER_SERVICE, GrpcCore, RpcCall, Service, explained
from samovar.client.pictures import Picture, PictureLike, StoredPicture
from samovar.client.prompts import Prompt
from samovar.client.results import Segmentation
from samovar.client.steps import Patience, Steps, drive, drive_async

T = TypeVar("T")

UNANSWERED_ATTEMPTS = 2
"""The channels themselves repeat what does not reach a replica, three times or four."""


class SamGrpcClient:
    """A client that blocks. Threads may share it.

    Every call raises what those of `SamClient` raise.
    """

    def __init__(
        self,
        *,
        encoder: str = "localhost:9002",
        decoder: str = "localhost:9003",
        api_key: str | None = None,
        timeout_s: float = 120.0,
        tls: Tls | None = None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            encoder: the encoder service as host:port; every address behind the name is a replica.
            decoder: the decoder service, likewise.
            api_key: yours, where the operator has configured keys; it also keeps your image_ids yours.
            timeout_s: how long a call may take, unless it says otherwise.
            tls: how to speak TLS, where the services do: with `Tls(ca=...)`, and with your own certificate where they
                ask for one.

        Raises:
            StartupError: a file of `tls` cannot be used.
        """
        self._targets: dict[Service, str] = {"encoder": encoder, "decoder": decoder}
        self._core = GrpcCore(api_key, Patience(timeout_s, unanswered_attempts=UNANSWERED_ATTEMPTS))
        self._channels = (
            open_blocking_channel(encoder, ENCODER_SERVICE, tls),
            open_blocking_channel(decoder, DECODER_SERVICE, tls),
        )
        self._stubs: dict[Service, Any] = {
            "encoder": encoder_service_pb2_grpc.EncoderServiceStub(self._channels[0]),
            "decoder": decoder_service_pb2_grpc.DecoderServiceStub(self._channels[1]),
        }

    def embed(
        self,
        picture: PictureLike,
        image_id: str | None = None,
        *,
        bulk: bool = False,
        timeout_s: float | None = None,
    ) -> Picture:
        """Have a picture embedded; see `SamClient.embed`."""
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
        """Predict the masks of what each prompt points at; see `SamClient.segment`.

        The picture is sent to the encoder only if no embedding of it is stored.
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
        """Predict the masks of all that a grid of points finds; see `SamClient.segment_everything`."""
        return self._run(self._core.segment_everything(picture, options, on_progress, timeout_s))

    def find(self, image_id: str, *, timeout_s: float | None = None) -> StoredPicture | None:
        """Return what is stored under an image_id, or None; this extends its expiry."""
        return self._run(self._core.find(image_id, timeout_s))

    def embedding(self, image_id: str, *, timeout_s: float | None = None) -> npt.NDArray[np.float32]:
        """Return a stored embedding, 1 x 256 x 64 x 64 (batch, channels, height, width).

        Raises:
            EmbeddingNotFound: nothing is stored under that image_id.
        """
        return self._run(self._core.embedding(image_id, timeout_s))

    def forget(self, image_id: str, *, purge: bool = False, timeout_s: float | None = None) -> bool:
        """Forget an image_id, with `purge` its embedding as well; return whether there was one."""
        return self._run(self._core.forget(image_id, purge, timeout_s))

    def model(self, *, timeout_s: float | None = None) -> embedding_pb2.Model:
        """Return the model that the decoder serves."""
        return self._run(self._core.model(timeout_s))

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        """Close on exit."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        return drive(steps, self._send)

    def _send(self, call: RpcCall) -> Any:
        method = getattr(self._stubs[call.service], call.method)
        try:
            answer = method(call.request, timeout=call.timeout_s, metadata=call.metadata)
            if call.on_message is None:
                return answer
            last = None
            try:
                for last in answer:
                    call.on_message(last)
            finally:
                answer.cancel()
            return last
        except grpc.RpcError as error:
            # What a blocking call raises has the same methods as what an awaited one does, but no type in common.
            raise explained(cast(grpc.aio.AioRpcError, error), call, self._targets[call.service]) from error


class AsyncSamGrpcClient:
    """`SamGrpcClient` to be awaited; see there. It belongs to one event loop."""

    def __init__(
        self,
        *,
        encoder: str = "localhost:9002",
        decoder: str = "localhost:9003",
        api_key: str | None = None,
        timeout_s: float = 120.0,
        tls: Tls | None = None,
    ) -> None:
        """See `SamGrpcClient`."""
        self._targets: dict[Service, str] = {"encoder": encoder, "decoder": decoder}
        self._core = GrpcCore(api_key, Patience(timeout_s, unanswered_attempts=UNANSWERED_ATTEMPTS))
        self._channels = (open_channel(encoder, ENCODER_SERVICE, tls), open_channel(decoder, DECODER_SERVICE, tls))
        self._stubs: dict[Service, Any] = {
            "encoder": encoder_service_pb2_grpc.EncoderServiceStub(self._channels[0]),
            "decoder": decoder_service_pb2_grpc.DecoderServiceStub(self._channels[1]),
        }

    async def embed(
        self,
        picture: PictureLike,
        image_id: str | None = None,
        *,
        bulk: bool = False,
        timeout_s: float | None = None,
    ) -> Picture:
        """See `SamGrpcClient.embed`."""
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
        """See `SamGrpcClient.segment`."""
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
        """See `SamGrpcClient.segment_everything`; `on_progress` is called on the event loop."""
        return await self._run(self._core.segment_everything(picture, options, on_progress, timeout_s))

    async def find(self, image_id: str, *, timeout_s: float | None = None) -> StoredPicture | None:
        """See `SamGrpcClient.find`."""
        return await self._run(self._core.find(image_id, timeout_s))

    async def embedding(self, image_id: str, *, timeout_s: float | None = None) -> npt.NDArray[np.float32]:
        """See `SamGrpcClient.embedding`."""
        return await self._run(self._core.embedding(image_id, timeout_s))

    async def forget(self, image_id: str, *, purge: bool = False, timeout_s: float | None = None) -> bool:
        """See `SamGrpcClient.forget`."""
        return await self._run(self._core.forget(image_id, purge, timeout_s))

    async def model(self, *, timeout_s: float | None = None) -> embedding_pb2.Model:
        """See `SamGrpcClient.model`."""
        return await self._run(self._core.model(timeout_s))

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

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

    async def _send(self, call: RpcCall) -> Any:
        method = getattr(self._stubs[call.service], call.method)
        try:
            answer = method(call.request, timeout=call.timeout_s, metadata=call.metadata)
            if call.on_message is None:
                return await answer
            last = None
            try:
                async for last in answer:
                    call.on_message(last)
            finally:
                answer.cancel()
            return last
        except grpc.aio.AioRpcError as error:
            raise explained(error, call, self._targets[call.service]) from error
