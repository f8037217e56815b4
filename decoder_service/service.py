"""Builds the decoder service and runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import structlog

from decoder_service.decode_pool import DecodePool
from decoder_service.embedding_cache import EmbeddingCache
from decoder_service.everything.segmenter import EverythingSegmenter
from decoder_service.image_lookup import ImageLookup
from decoder_service.masks import threshold_at_original_size
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from decoder_service.segmenter import Segmenter
from decoder_service.servicer import DecoderServicer
from decoder_service.settings import DecoderOptions
from decoder_service.stub_mask_decoder import StubMaskDecoder
from decoder_service.team import Team
from sam.auth import KeyRing
from sam.checkpoints import Checkpoint, StubCheckpoint, find_checkpoint
from sam.cpu import available_cores
from sam.embedding import ModelIdentity
from sam.embedding_store import Backend, CountedBackend, EmbeddingStore
from sam.geometry import EMBEDDING_SHAPE, Size
from sam.key_limits import CALLS_PER_REQUEST
from sam.lifecycle import closing
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.rpc.metrics import MODEL_INFO
from sam.rpc.server import RpcServer
from sam.settings import RpcServerSettings
from sam.tls import ServerTls
from sam.v1.decoder_service_pb2_grpc import add_DecoderServiceServicer_to_server

log = structlog.get_logger("decoder_service")

_THREADS_AT_MOST = 4
"""A click is not cut finer than this by default: the tokens' side, which is not cut, then takes as long as a piece."""

_FOUND_BEFORE_KEPT = 2
"""How many times the largest answer a grid may find before duplicates are dropped."""

SERVICE_NAME = "sam.v1.DecoderService"


@asynccontextmanager
async def decoder_running(
    options: DecoderOptions, server: RpcServerSettings, port: int, store_backend: Backend
) -> AsyncIterator[int]:
    """Run the decoder service until the block is left, which finishes accepted calls.

    Args:
        options: what it does.
        server: how it listens.
        port: where; 0 lets the system choose.
        store_backend: where embeddings are kept; it stays the caller's to close.

    Yields:
        The port it listens on, once it is ready to serve.

    Raises:
        StartupError: the checkpoint, the keys or the port cannot be used; the message says what to do.
    """
    keys = KeyRing.of(options, calls_per_request=CALLS_PER_REQUEST)
    tls = ServerTls.of_grpc(server)
    checkpoint = await asyncio.to_thread(find_checkpoint, options)
    cores = available_cores()
    team = Team(options.decoder_threads or min(cores, _THREADS_AT_MOST), helpers=cores - 1)
    predictor = await asyncio.to_thread(_build_predictor, options, checkpoint, team)
    model = checkpoint.identity
    pool = DecodePool(options.decoder_workers or cores)

    async def close_threads() -> None:
        await asyncio.to_thread(pool.close)
        await asyncio.to_thread(team.close)

    async with closing(close_threads):
        await pool.run(lambda: _warm_up(predictor))
        async with servicer_running(options, server, port, store_backend, model, predictor, pool, keys) as bound:
            log.info(
                "decoder ready",
                port=bound,
                model=model.name,
                checkpoint=model.origin.value,
                engine=predictor.engine,
                precision=predictor.precision,
                cores=cores,
                threads=team.threads,
                tls=tls.kind if tls else "off",
            )
            yield bound


@asynccontextmanager
async def servicer_running(
    options: DecoderOptions,
    server: RpcServerSettings,
    port: int,
    store_backend: Backend,
    model: ModelIdentity,
    predictor: MaskPredictor,
    pool: DecodePool,
    keys: KeyRing,
) -> AsyncIterator[int]:
    """Serve with a predictor that is ready; see `decoder_running`."""
    store = EmbeddingStore(
        CountedBackend(store_backend), model, ttl_s=options.embedding_ttl_s, share_embeddings=options.share_embeddings
    )
    servicer = DecoderServicer(
        model,
        store,
        ImageLookup(store, EmbeddingCache(options.decoder_cache_bytes), predictor, pool),
        Segmenter(predictor, pool, options.decoder_max_response_bytes),
        EverythingSegmenter(predictor, pool, _FOUND_BEFORE_KEPT * options.decoder_max_response_bytes),
        limits=options.request_limits,
        max_concurrent=options.decoder_max_concurrent,
        max_everything=options.decoder_max_everything,
        max_response_bytes=options.decoder_max_response_bytes,
    )
    rpc = RpcServer(
        server, SERVICE_NAME, lambda grpc_server: add_DecoderServiceServicer_to_server(servicer, grpc_server), keys
    )
    bound = await rpc.start(server.host, port)
    MODEL_INFO.labels("decoder", model.name, model.fingerprint, model.origin.value, predictor.precision).set(1)
    async with closing(rpc.drain):
        yield bound


def _build_predictor(options: DecoderOptions, checkpoint: Checkpoint, team: Team) -> MaskPredictor:
    if isinstance(checkpoint, StubCheckpoint):
        return MaskPredictor.of_engine(StubMaskDecoder(checkpoint.model), team)
    # Not on the meta device, whose random numbers import all of torch's compiler: 2 s, where initialising takes 0.1 s.
    prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
    checkpoint.load_into(prompt_encoder, "prompt_encoder")
    checkpoint.load_into(mask_decoder, "mask_decoder")
    return MaskPredictor(
        prompt_encoder, mask_decoder, engine=options.decoder_engine, precision=options.decoder_precision, team=team
    )


def _warm_up(predictor: MaskPredictor) -> None:
    """Let the libraries build their kernels before the first click waits for them."""
    size = Size(768, 1024)
    prepared = predictor.prepare(np.zeros(EMBEDDING_SHAPE, np.float32))
    for prompt in (Prompt.build(point_coords=[(1, 1)]), Prompt.build(box=(1, 1, 9, 9))):
        (prediction,) = predictor.predict_masks(prepared, [prompt], size)
        threshold_at_original_size(prediction.low_res_logits[0], size, library=predictor.library)
