"""The two services as the gateway sees them: typed calls with a deadline, whose failures are errors of the tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.absence import Absence
from gateway.affinity.pictures import picture_of
from gateway.affinity.replicas import Replicas
from gateway.calls import Call
from sam.errors import (
    DecoderUnavailable,
    EncoderUnavailable,
    InternalError,
    SamovarError,
    StoreUnavailable,
    Unavailable,
)
from sam.rpc.channel import open_channel
from sam.rpc.status import from_rpc_error, is_unreached
from sam.rpc.tracing import traced_channel
from sam.tls import Tls
from sam.v1 import decoder_service_pb2 as decoder_pb
from sam.v1 import decoder_service_pb2_grpc, embedding_pb2, encoder_service_pb2_grpc
from sam.v1 import encoder_service_pb2 as encoder_pb

DECODER_SERVICE = decoder_pb.DESCRIPTOR.services_by_name["DecoderService"].full_name
ENCODER_SERVICE = encoder_pb.DESCRIPTOR.services_by_name["EncoderService"].full_name

HEALTH_TIMEOUT_S = 1.0

log = structlog.get_logger("gateway")

Response = TypeVar("Response")


class ServiceClient:
    """A channel to all replicas of one service."""

    def __init__(self, target: str, service_name: str, unavailable: type[Unavailable], tls: Tls | None) -> None:
        """Open the channel; it connects when it is first used.

        Args:
            target: the service as host:port.
            service_name: its full name, for health checks.
            unavailable: the error for a service without a replica that answers.
            tls: how to speak TLS; None: plain text.
        """
        self._service_name = service_name
        self._unavailable = unavailable
        self.channel = open_channel(target, service_name, tls)
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        self._check_health = stub.Check
        self._absence = Absence(self.channel, service_name)

    async def invoke(self, method: Callable[..., Awaitable[Response]], request: Any, call: Call) -> Response:
        """Call a method on behalf of `call`. Cancelling this cancels the call, at the service too.

        Raises:
            SamovarError: what the service raised, or why it could not be reached.
        """
        patience = self._absence.patience()
        while True:
            try:
                response = await method(request, timeout=call.rpc_timeout_s(), metadata=call.metadata)
            except grpc.aio.AioRpcError as error:
                if not (is_unreached(error) and await patience.may_try_again(call.left_s)):
                    raise self._known(error, call) from None
            else:
                self._absence.over()
                return response

    async def stream(self, method: Callable[..., Any], request: Any, call: Call) -> AsyncGenerator[Any, None]:
        """Call a method that answers with a stream. Closing the generator cancels the call, at the service too.

        Raises:
            SamovarError: what the service raised, or why it could not be reached.
        """
        patience, begun = self._absence.patience(), False
        while True:
            messages = method(request, timeout=call.rpc_timeout_s(), metadata=call.metadata)
            try:
                async for message in messages:
                    begun = True
                    self._absence.over()
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                if begun or not (is_unreached(error) and await patience.may_try_again(call.left_s)):
                    raise self._known(error, call) from None
            finally:
                messages.cancel()

    def _known(self, error: grpc.aio.AioRpcError, call: Call) -> SamovarError:
        """Return the error of the tree that a failed call stands for; log it if it is a fault of ours."""
        known = from_rpc_error(error, unavailable=self._unavailable)
        if isinstance(known, InternalError):
            log.error("call failed", service=self._service_name, code=error.code().name, details=error.details())
        if isinstance(known, StoreUnavailable):
            call.store_lost = True
        if not is_unreached(error):
            self._absence.over()
        return known

    async def is_serving(self) -> bool:
        """Tell whether a replica would try a request now."""
        request = health_pb2.HealthCheckRequest(service=self._service_name)
        try:
            answer = await self._check_health(request, timeout=HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()


class DecoderClient(ServiceClient):
    """`sam.v1.DecoderService`."""

    def __init__(self, target: str, tls: Tls | None = None, *, affinity: bool = False) -> None:
        """See `ServiceClient`; with `affinity`, clicks on one picture go to one replica, while it has room."""
        super().__init__(target, DECODER_SERVICE, DecoderUnavailable, tls)

        def stub(channel: grpc.aio.Channel) -> decoder_service_pb2_grpc.DecoderServiceAsyncStub:
            return decoder_service_pb2_grpc.DecoderServiceStub(traced_channel(channel))

        self._stub = stub(self.channel)
        replicas = Replicas(target, DECODER_SERVICE, tls, stub)
        self._replicas = replicas if affinity and replicas.may_be_several else None

    async def segment_image(
        self, request: decoder_pb.SegmentImageRequest, call: Call
    ) -> decoder_pb.SegmentImageResponse:
        """Predict the masks of what each prompt points at."""
        if self._replicas is not None:
            for replica in self._replicas.near(picture_of(request, call.api_key)):
                try:
                    with self._replicas.asking(replica):
                        response: decoder_pb.SegmentImageResponse = await replica.stub.SegmentImage(
                            request, timeout=call.rpc_timeout_s(), metadata=call.metadata
                        )
                except grpc.aio.AioRpcError as error:
                    if not is_unreached(error):
                        raise self._known(error, call) from None
                    self._replicas.refused()
                else:
                    self._absence.over()
                    return response
        # To any replica, with all the patience there is.
        return await self.invoke(self._stub.SegmentImage, request, call)

    def segment_everything(
        self, request: decoder_pb.SegmentEverythingRequest, call: Call
    ) -> AsyncGenerator[decoder_pb.SegmentEverythingResponse, None]:
        """Predict the masks of all that a grid of points finds, with progress first."""
        return self.stream(self._stub.SegmentEverything, request, call)

    async def get_embedding(
        self, image_id: str, view: embedding_pb2.EmbeddingView.ValueType, call: Call
    ) -> decoder_pb.GetEmbeddingResponse:
        """Return the stored embedding that an image_id is bound to."""
        request = decoder_pb.GetEmbeddingRequest(image_id=image_id, view=view)
        return await self.invoke(self._stub.GetEmbedding, request, call)

    async def delete_embedding(self, image_id: str, purge: bool, call: Call) -> None:
        """Forget an image_id, and with `purge` the embedding as well."""
        request = decoder_pb.DeleteEmbeddingRequest(image_id=image_id, purge=purge)
        await self.invoke(self._stub.DeleteEmbedding, request, call)

    async def get_model(self, call: Call) -> embedding_pb2.Model:
        """Return the model served."""
        response = await self.invoke(self._stub.GetModel, decoder_pb.GetModelRequest(), call)
        return response.model

    async def close(self) -> None:
        """Close all channels."""
        if self._replicas is not None:
            await self._replicas.close()
        await super().close()


class EncoderClient(ServiceClient):
    """`sam.v1.EncoderService`."""

    def __init__(self, target: str, tls: Tls | None = None) -> None:
        """See `ServiceClient`."""
        super().__init__(target, ENCODER_SERVICE, EncoderUnavailable, tls)
        self._stub = encoder_service_pb2_grpc.EncoderServiceStub(traced_channel(self.channel))

    async def embed_image(self, request: encoder_pb.EmbedImageRequest, call: Call) -> encoder_pb.EmbedImageResponse:
        """Compute and store the embedding of an image."""
        return await self.invoke(self._stub.EmbedImage, request, call)


class Services:
    """Both services."""

    def __init__(
        self, *, encoder_target: str, decoder_target: str, tls: Tls | None = None, decoder_affinity: bool = False
    ) -> None:
        """Open the channels to both; see `DecoderClient` for `decoder_affinity`."""
        self.encoder = EncoderClient(encoder_target, tls)
        self.decoder = DecoderClient(decoder_target, tls, affinity=decoder_affinity)

    async def close(self) -> None:
        """Close both channels."""
        await asyncio.gather(self.encoder.close(), self.decoder.close())
