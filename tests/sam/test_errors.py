"""The error tree is complete, and survives the trip over gRPC."""

from __future__ import annotations

import re

import grpc
import pytest

from sam import errors
from sam.errors import SamovarError, by_reason, leaves
from sam.rpc.status import DETAILS_KEY, code_of, from_rpc_error, to_status


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_every_leaf_has_a_reason_a_code_and_a_status(leaf: type[SamovarError]) -> None:
    """Each error that is raised is complete and stands in the drawing of the tree."""
    assert re.fullmatch(r"[A-Z_]+", leaf.reason)
    assert code_of(leaf("message")) is not grpc.StatusCode.OK
    assert 400 <= leaf.http_status < 600
    assert re.search(rf"{leaf.__name__}\s+{leaf.reason}\n", errors.__doc__ or "")


def test_reasons_are_unique() -> None:
    """A reason names one class."""
    assert len(by_reason()) == len(leaves())


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_an_error_survives_the_trip_over_grpc(leaf: type[SamovarError]) -> None:
    """The client raises the class, the message, the field and the retry delay that the service raised."""
    sent = leaf("what is wrong", field="prompts[0].box", retry_after_s=1.5, metadata={"served": "vit_b"})
    status = to_status(sent)
    trailing = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    failed = grpc.aio.AioRpcError(code_of(sent), grpc.aio.Metadata(), trailing, details=status.message)
    received = from_rpc_error(failed, unavailable=errors.DecoderUnavailable)
    assert type(received) is leaf
    assert (received.message, received.field) == (sent.message, sent.field)
    assert received.retry_after_s == sent.retry_after_s
    assert received.metadata == sent.metadata


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", errors.EncoderUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", errors.RequestTooLarge),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", errors.Overloaded),
        (grpc.StatusCode.INTERNAL, "secret details", errors.InternalError),
        (grpc.StatusCode.UNKNOWN, "secret details", errors.InternalError),
    ],
)
def test_a_status_of_grpcs_own_becomes_one_of_ours(
    code: grpc.StatusCode, text: str, expected: type[SamovarError]
) -> None:
    """What gRPC itself answers is translated, and its text never reaches a caller."""
    failed = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=text)
    received = from_rpc_error(failed, unavailable=errors.EncoderUnavailable)
    assert type(received) is expected
    assert "secret" not in received.message


def test_a_long_message_fits_into_a_header() -> None:
    """A status is sent in a header, which peers bound at 8 KiB."""
    assert len(to_status(errors.RequestInvalid("x" * 100_000)).SerializeToString()) < 4096
