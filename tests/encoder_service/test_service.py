"""The encoder service as it is started: from its settings, with a real model of random weights."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from encoder_service.service import SERVICE_NAME, encoder_running
from encoder_service.settings import EncoderSettings
from sam.embedding_store import InProcessBackend
from sam.errors import StartupError
from sam.tensors import from_tensor
from sam.v1 import embedding_pb2, encoder_service_pb2, encoder_service_pb2_grpc, image_pb2
from tests.encoder_service import pictures

PATIENCE_S = 60.0


def _settings(**values: object) -> EncoderSettings:
    return EncoderSettings.model_validate({"model": "starter", "checkpoint": "random:3", "drain_s": 0} | values)


@pytest.mark.parametrize(
    ("stored_as", "answered_as", "least_bytes"),
    [("float16", "float16", 2 * 2**20), ("float32", "float32", 4 * 2**20), ("int8", "float32", 2**20)],
)
def test_the_service_embeds_with_the_model_that_it_was_told_to_serve(
    stored_as: str, answered_as: str, least_bytes: int
) -> None:
    """Started from settings, it is healthy, embeds a picture, stores it for its peers, and stops.

    Who asks again is told the same numbers, however they are stored.
    """

    async def scenario() -> None:
        backend = InProcessBackend(2**24)
        settings = _settings(embedding_dtype=stored_as)
        request = encoder_service_pb2.EmbedImageRequest(
            image_id="cat",
            image=image_pb2.Image(content=pictures.encoded(60, 90, "JPEG")),
            view=embedding_pb2.EMBEDDING_VIEW_FULL,
        )
        options = [("grpc.max_receive_message_length", 2**24)]
        async with (
            encoder_running(settings, settings, 0, backend) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel,
        ):
            health: Any = health_pb2_grpc.HealthStub(channel)
            status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=PATIENCE_S)
            assert status.status == health_pb2.HealthCheckResponse.SERVING
            stub: encoder_service_pb2_grpc.EncoderServiceAsyncStub = encoder_service_pb2_grpc.EncoderServiceStub(
                channel
            )
            response = await stub.EmbedImage(request, timeout=PATIENCE_S)
            assert response.embedding.model == "starter"
            features = from_tensor(response.embedding.features)
            assert features.shape == (1, 256, 64, 64)
            assert features.dtype == answered_as
            assert features.astype(np.float32).std() > 0
            again = await stub.EmbedImage(request, timeout=PATIENCE_S)
            assert again.cache_status == embedding_pb2.CACHE_STATUS_HIT
            assert np.array_equal(from_tensor(again.embedding.features), features)
        # The backend is the caller's, and still there.
        assert least_bytes < backend.bytes_used < least_bytes + 4096

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"checkpoint": "/no/such/file"}, "no checkpoint file"),
        ({"checkpoint": "random:x"}, "whole number"),
        ({"api_keys_file": Path("/no/such/keys")}, "cannot be read"),
    ],
)
def test_a_service_that_cannot_start_says_why(wrong: dict[str, object], text: str) -> None:
    """Settings that point at nothing end the start with one line about them."""

    async def scenario() -> None:
        settings = _settings(**wrong)
        async with encoder_running(settings, settings, 0, InProcessBackend(1)):
            raise AssertionError("it started")

    with pytest.raises(StartupError, match=text):
        asyncio.run(scenario())


def test_a_replica_on_its_own_refuses_to_start_without_a_store() -> None:
    """`python -m encoder_service` exits with one line where it has no Redis URL, and where nothing answers there."""
    program = [sys.executable, "-m", "encoder_service", "--model", "starter", "--checkpoint", "random:0", "--port", "0"]
    without = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    unreachable = subprocess.Popen([*program, "--redis-url", "redis://127.0.0.1:1"], stderr=subprocess.PIPE, text=True)
    for process, text in ((without, "--redis-url"), (unreachable, "127.0.0.1:1")):
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert text in errors
        assert "Traceback" not in errors
