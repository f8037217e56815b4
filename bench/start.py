"""From a replica's start to its first answer: `python -m bench.start [--json]`.

A decoder process is started over a Redis that holds a picture's embedding, asked for one click from its first moment
on, and stopped, several times; then an encoder process on the CPU with a checkpoint of `vit_b`, of random weights, is
asked for a picture that nobody has embedded. Checkpoints are on disk and, after the first time, in the system's cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import torch

from bench.decoder import hardware
from bench.encoder import network, photograph
from bench.http import IMAGE_ID, embed
from sam.checkpoints import find_checkpoint
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.settings import ModelSettings
from sam.v1 import decoder_service_pb2 as decoder_pb
from sam.v1 import decoder_service_pb2_grpc as decoder_grpc
from sam.v1 import encoder_service_pb2 as encoder_pb
from sam.v1 import encoder_service_pb2_grpc as encoder_grpc
from sam.v1 import image_pb2
from tests.conftest import start_redis
from tests.integration.processes import spawned, stack
from tests.upstream import upstream_sam

_LONGEST_S = 60

Ask = Callable[[grpc.Channel], object]


def click(channel: grpc.Channel) -> None:
    """Ask a decoder for a mask."""
    prompt = decoder_pb.Prompt(points=[decoder_pb.Point(x=900, y=600, label=decoder_pb.POINT_LABEL_FOREGROUND)])
    request = decoder_pb.SegmentImageRequest(image=image_pb2.ImageReference(image_id=IMAGE_ID), prompts=[prompt])
    decoder_grpc.DecoderServiceStub(channel).SegmentImage(request, timeout=_LONGEST_S)


def picture(number: int, channel: grpc.Channel) -> None:
    """Ask an encoder for a picture that is new to the store: what follows a JPEG's end belongs to its content."""
    request = encoder_pb.EmbedImageRequest(image=image_pb2.Image(content=photograph() + bytes([number])))
    encoder_grpc.EncoderServiceStub(channel).EmbedImage(request, timeout=_LONGEST_S)


def first_answer(target: str, ask: Ask) -> None:
    """Ask once, as soon as somebody is there to answer."""
    until = time.monotonic() + _LONGEST_S
    # A new channel each time: one that was refused pauses before it connects again.
    while True:
        with grpc.insecure_channel(target) as channel:
            try:
                ask(channel)
                return
            except grpc.RpcError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)


def checkpoint_on_disk(folder: Path) -> Path:
    """Write a whole checkpoint of `vit_b` as upstream publishes it, of random weights."""
    checkpoint = find_checkpoint(ModelSettings(model="vit_b", checkpoint="random:0"))
    prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
    checkpoint.load_into(prompt_encoder, "prompt_encoder")
    checkpoint.load_into(mask_decoder, "mask_decoder")
    sam = upstream_sam(prompt_encoder, mask_decoder)
    sam.image_encoder = network(checkpoint, "vit_b")
    path = folder / "vit_b.pth"
    torch.save(sam.state_dict(), path)
    return path


def seconds(module: str, folder: Path, environment: dict[str, str], ask: Ask) -> float:
    """Return how long a process takes from its start to its first answer."""
    started = time.perf_counter()
    with spawned(module, folder, environment) as process:
        first_answer(process.target, ask)
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--times", type=int, default=5, help="how often")
    arguments = parser.parse_args()
    about = hardware()
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        redis = start_redis(folder)
        held.callback(redis.stop)
        starter = {"SAMOVAR_MODEL": "starter", "SAMOVAR_REDIS_URL": redis.url}
        with stack(folder, redis.url, encoders=1, decoders=1, environment=starter) as running:
            asyncio.run(embed(running.gateway.url))
        vit_b = {
            "SAMOVAR_MODEL": "vit_b",
            "SAMOVAR_CHECKPOINT": str(checkpoint_on_disk(folder)),
            "SAMOVAR_DEVICE": "cpu",
            "SAMOVAR_REDIS_URL": redis.url,
        }
        taken = {
            "first_click_s": [seconds("decoder_service", folder, starter, click) for _ in range(arguments.times)],
            "first_picture_s": [
                seconds("encoder_service", folder, vit_b, partial(picture, number)) for number in range(arguments.times)
            ],
        }
    if arguments.json:
        print(json.dumps({**{name: float(np.median(each)) for name, each in taken.items()}, "hardware": about}))
        return
    print(json.dumps(about))
    for name, what in (
        ("first_click_s", "a decoder's start to its first click"),
        ("first_picture_s", "an encoder's start to its first picture, vit_b on a CPU"),
    ):
        each = taken[name]
        print(f"{what}: {np.median(each):.1f} s, median of {len(each)}; worst {max(each):.1f} s")


if __name__ == "__main__":
    main()
