"""The two services over gRPC, called with whatever their own descriptions allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam.errors import EncoderUnavailable
from sam.rpc.status import from_rpc_error
from sam.v1 import encoder_service_pb2, encoder_service_pb2_grpc, image_pb2
from tests.faults.deployment import Deployment
from tests.hostile.conftest import Begin
from tests.hostile.grpc_messages import NAME, PICTURE, requests
from tests.hostile.tally import Tally

METHODS = [
    ("encoder_service", "sam.v1.EncoderService", "EmbedImage"),
    ("decoder_service", "sam.v1.DecoderService", "SegmentImage"),
    ("decoder_service", "sam.v1.DecoderService", "SegmentEverything"),
    ("decoder_service", "sam.v1.DecoderService", "GetEmbedding"),
    ("decoder_service", "sam.v1.DecoderService", "DeleteEmbedding"),
    ("decoder_service", "sam.v1.DecoderService", "GetModel"),
]

# Nothing is lost, late or overloaded here, so only the caller's mistakes are left.
DOCUMENTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}

PATIENCE_S = 30.0

relaxed = settings(
    max_examples=settings.default.max_examples // 2,  # type: ignore[union-attr]
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def channels(services: Deployment) -> Iterator[dict[str, grpc.Channel]]:
    """A channel to each service, by its module."""
    opened = {one.module: _open(one.target) for one in [*services.encoders, *services.decoders]}
    encoder: Any = encoder_service_pb2_grpc.EncoderServiceStub(opened["encoder_service"])
    image = image_pb2.Image(content=PICTURE)
    encoder.EmbedImage(encoder_service_pb2.EmbedImageRequest(image_id=NAME, image=image), timeout=PATIENCE_S)
    yield opened
    for channel in opened.values():
        channel.close()


def _open(target: str) -> grpc.Channel:
    # No retries: each answer is to be seen.
    return grpc.insecure_channel(
        target, options=[("grpc.max_receive_message_length", 2**26), ("grpc.enable_retries", 0)]
    )


def _described(channel: grpc.Channel, service: str, method: str) -> MethodDescriptor:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert service in database.get_services()
    return DescriptorPool(database).FindServiceByName(service).methods_by_name[method]


@pytest.mark.parametrize(("module", "service", "method"), METHODS, ids=[method for _, _, method in METHODS])
def test_no_message_brings_about_anything_undocumented(
    channels: dict[str, grpc.Channel], tally: Begin, module: str, service: str, method: str
) -> None:
    """Whatever a request holds, the answer is OK or an error of the tree with its own code."""
    channel, counts = channels[module], tally(f"messages made from reflection, {method}")
    described = _described(channel, service, method)

    @given(requests(described.input_type))
    @relaxed
    def send(request: Message) -> None:
        code, reason = _call(channel, described, request.SerializeToString())
        _count(counts, code, reason)
        assert code in DOCUMENTED, (code, reason, str(request)[:2000])

    send()


@pytest.mark.parametrize(("module", "service", "method"), METHODS, ids=[method for _, _, method in METHODS])
def test_no_bytes_stop_a_service(
    channels: dict[str, grpc.Channel], tally: Begin, module: str, service: str, method: str
) -> None:
    """Bytes that are no message end that call alone; the service answers the next one."""
    channel, counts = channels[module], tally(f"bytes instead of messages, {method}")
    described = _described(channel, service, method)

    @given(st.binary(max_size=200))
    @relaxed
    def send(data: bytes) -> None:
        code, reason = _call(channel, described, data)
        _count(counts, code, reason)
        assert code in DOCUMENTED, (code, reason, data)

    send()


def _call(channel: grpc.Channel, described: MethodDescriptor, data: bytes) -> tuple[str, str]:
    """Return the code of an answer, and the reason of a refusal; empty for gRPC's own."""
    path = f"/{described.containing_service.full_name}/{described.name}"
    parse = GetMessageClass(described.output_type).FromString
    try:
        if described.server_streaming:
            for _ in channel.unary_stream(path, None, parse)(data, timeout=PATIENCE_S):  # type: ignore[arg-type]
                pass
        else:
            channel.unary_unary(path, None, parse)(data, timeout=PATIENCE_S)  # type: ignore[arg-type]
    except grpc.RpcError as error:
        raised: Any = error
        known = from_rpc_error(raised, unavailable=EncoderUnavailable)
        code = raised.code().name
        if code in DOCUMENTED:
            assert known.grpc_code == code, (code, known.reason, raised.details())
        return code, known.reason
    return "OK", ""


def _count(counts: Tally, code: str, reason: str) -> None:
    if code == "OK":
        counts.accept()
    else:
        counts.refuse(reason if code in DOCUMENTED else code)
