"""The error tree over gRPC: `google.rpc.Status` with `ErrorInfo`, `BadRequest` and `RetryInfo`."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from sam.errors import (
    DOMAIN,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    RequestTooLarge,
    SamovarError,
    Unavailable,
    by_reason,
)

DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata that carries a serialised `google.rpc.Status`."""

# HTTP/2 peers commonly refuse headers over 8 KiB; the status travels in one, in base64 and beside its plain text, of
# which each byte that is not ASCII takes three.
_MAX_MESSAGE_BYTES = 1_500


def code_of(error: SamovarError) -> grpc.StatusCode:
    """Return the gRPC status code of an error."""
    return grpc.StatusCode[error.grpc_code]


def to_status(error: SamovarError) -> status_pb2.Status:
    """Return the full status of an error, for `grpc-status-details-bin`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[Message] = [info]
    message = _shortened(error.message)
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code_of(error).value[0], message=message, details=packed)


def _shortened(message: str) -> str:
    """Cut a message to what fits, by the bytes of a character: one if it is ASCII, and otherwise three for each."""
    size = 0
    for index, character in enumerate(message):
        size += 1 if character.isascii() else 3 * len(character.encode(errors="replace"))
        if size > _MAX_MESSAGE_BYTES:
            return message[:index]
    return message


def from_rpc_error(error: grpc.aio.AioRpcError, *, unavailable: type[Unavailable]) -> SamovarError:
    """Turn a failed call back into the error that the service raised.

    Args:
        error: what the call failed with.
        unavailable: the error for a service that was not reached at all.
    """
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            known = _from_status(value)
            if known is not None:
                return known
    code = error.code()
    # CANCELLED by the other side, for what we cancel ourselves raises no such error: gRPC lets go of calls that way
    # before a server that is drowning in them has seen them.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        name = unavailable.reason.split("_")[0].lower()
        return unavailable(f"No {name} replica can be reached at the moment. Try again shortly.")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The answer was not ready before the request's deadline.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without details of ours it is gRPC itself, which says so of messages over the size limit.
        if "larger than max" in (error.details() or ""):
            return RequestTooLarge("The request is larger than the services accept.")
        return Overloaded("The service is overloaded. Try again shortly.")
    return InternalError("Something failed inside the service; its log has the details.")


def is_unreached(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a call failed because no replica took it, and not by what a service answered."""
    answered = any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())
    return error.code() is grpc.StatusCode.UNAVAILABLE and not answered


def _from_status(serialised: bytes) -> SamovarError | None:
    try:
        status = status_pb2.Status.FromString(serialised)
    except DecodeError:
        return None
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, request, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    kind = by_reason().get(info.reason) if info.domain == DOMAIN else None
    if kind is None:
        return None
    field = request.field_violations[0].field if request.field_violations else None
    delay = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
    return kind(status.message, field=field, retry_after_s=delay, metadata=dict(info.metadata))
