"""From a decoder's start to its first click: `python -m bench.start [--json]`.

A decoder process is started over a Redis that holds a picture's embedding, asked for one click from its first moment
on, and stopped, several times. The checkpoint is on disk and, after the first time, in the system's cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np

from bench.decoder import hardware
from bench.http import IMAGE_ID, embed
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc as pb_grpc
from sam.v1 import image_pb2
from tests.conftest import start_redis
from tests.integration.processes import spawned, stack

_LONGEST_S = 60


def first_click(target: str) -> None:
    """Click once, as soon as somebody is there to answer."""
    prompt = pb.Prompt(points=[pb.Point(x=900, y=600, label=pb.POINT_LABEL_FOREGROUND)])
    request = pb.SegmentImageRequest(image=image_pb2.ImageReference(image_id=IMAGE_ID), prompts=[prompt])
    until = time.monotonic() + _LONGEST_S
    # A new channel each time: one that was refused pauses before it connects again.
    while True:
        with grpc.insecure_channel(target) as channel:
            try:
                pb_grpc.DecoderServiceStub(channel).SegmentImage(request, timeout=_LONGEST_S)
                return
            except grpc.RpcError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--times", type=int, default=5, help="how often")
    arguments = parser.parse_args()
    about = hardware()
    environment = {"SAMOVAR_MODEL": "starter"}
    taken = []
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        redis = start_redis(folder)
        held.callback(redis.stop)
        with stack(folder, redis.url, encoders=1, decoders=1, environment=environment) as running:
            asyncio.run(embed(running.gateway.url))
        for _ in range(arguments.times):
            started = time.perf_counter()
            with spawned("decoder_service", folder, {**environment, "SAMOVAR_REDIS_URL": redis.url}) as process:
                first_click(process.target)
                taken.append(time.perf_counter() - started)
    seconds = float(np.median(taken))
    if arguments.json:
        print(json.dumps({"first_click_s": seconds, "hardware": about}))
    else:
        print(json.dumps(about))
        print(
            f"a decoder's start to its first click: {seconds:.1f} s, median of {len(taken)}; worst {max(taken):.1f} s"
        )


if __name__ == "__main__":
    main()
