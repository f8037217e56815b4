"""Clicks over the network: `python -m bench.http [--json]`.

One replica of each of our services and a server built like the reference (`bench.reference_server`) hold the same
picture's embedding of the same weights; clients click on it, one and eight at a time, each waiting for its answer, in
turns of a few seconds. Then eight callers of the decoder over gRPC take turns with the same work done in a process of
its own, without a network. Clients, servers and Redis share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.decoder import hardware
from decoder_service.mask_encoding import encode_rle
from decoder_service.masks import threshold_at_original_size
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from decoder_service.team import solo_executor
from sam.checkpoints import find_checkpoint
from sam.cpu import available_cores
from sam.geometry import Size
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.rpc.channel import open_channel
from sam.settings import ModelSettings
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc as pb_grpc
from sam.v1 import image_pb2
from tests.conftest import free_port, start_redis
from tests.integration.processes import Stack, stack

SIZE = Size(1200, 1800)
IMAGE_ID = "bench"
CLIENTS = (1, 8)
_PHOTOGRAPH = Path(__file__).resolve().parent.parent / "gateway" / "demo" / "sample.jpg"
_START_S = 60.0
_OURS, _OTHER = "ours", "like the reference"

Click = Callable[[int], Awaitable[None]]


def points(seed: int) -> Iterator[tuple[float, float]]:
    """Yield places of the picture."""
    rng = np.random.default_rng(seed)
    while True:
        x, y = rng.uniform(0.1, 0.9, 2)
        yield float(x * SIZE.width), float(y * SIZE.height)


async def clicks(click: Click, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Let clients click, each after its last answer; return the clicks a second and each one's milliseconds."""
    taken: list[float] = []
    started = time.perf_counter()

    async def client(number: int) -> None:
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            await click(number)
            taken.append((time.perf_counter() - before) * 1e3)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return len(taken) / (time.perf_counter() - started), taken


def http_click(session: aiohttp.ClientSession, url: str) -> Click:
    """Return a click over HTTP, answered with polygons in JSON."""
    places = points(0)

    async def click(_: int) -> None:
        body = {"image_id": IMAGE_ID, "point_coords": [next(places)], "point_labels": [1], "format": "json"}
        async with session.post(f"{url}/sam/segment_image", json=body) as response:
            answer = await response.read()
            if response.status != 200 or b'"masks"' not in answer:
                raise RuntimeError(f"{url} answered {response.status}: {answer[:300]!r}")

    return click


async def over_http(
    urls: dict[str, str], rounds: int, seconds: float
) -> dict[tuple[str, int], tuple[float, list[float]]]:
    """Measure all servers in turns; return for each, and each number of clients, clicks a second and milliseconds."""
    rates: dict[tuple[str, int], list[float]] = {}
    taken: dict[tuple[str, int], list[float]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        ways = {name: http_click(session, url) for name, url in urls.items()}
        for click in ways.values():
            await clicks(click, max(CLIENTS), 1)
        for _ in range(rounds):
            for clients in CLIENTS:
                for name, click in ways.items():
                    rate, times = await clicks(click, clients, seconds)
                    rates.setdefault((name, clients), []).append(rate)
                    taken.setdefault((name, clients), []).extend(times)
    return {key: (float(np.median(rate)), taken[key]) for key, rate in rates.items()}


class InProcess:
    """What a decoder does for a click, without a network: predict, scale, encode."""

    def __init__(self, features: npt.NDArray[np.floating]) -> None:
        prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
        checkpoint = find_checkpoint(ModelSettings(model="starter"))
        checkpoint.load_into(prompt_encoder, "prompt_encoder")
        checkpoint.load_into(mask_decoder, "mask_decoder")
        self._predictor = MaskPredictor(prompt_encoder, mask_decoder)
        self._prepared = self._predictor.prepare(features)
        self._places = points(1)
        self._threads: ThreadPoolExecutor = solo_executor(available_cores(), "bench")

    async def click(self, _: int) -> None:
        """Do it in one of as many threads as there are cores."""
        place = next(self._places)
        await asyncio.get_running_loop().run_in_executor(self._threads, self._work, place)

    def _work(self, place: tuple[float, float]) -> bytes:
        prompt = Prompt.build(point_coords=[place], point_labels=[1])
        (prediction,) = self._predictor.predict_batch(self._prepared, [prompt], SIZE, padding=False)
        library = self._predictor.library
        return encode_rle(
            threshold_at_original_size(prediction.low_res_logits[0], SIZE, library=library), library=library
        )


async def over_grpc(
    target: str, in_process: InProcess, rounds: int, seconds: float
) -> dict[str, tuple[float, list[float]]]:
    """Measure eight callers of the decoder and of the same work in this process, in turns."""
    places = points(1)
    async with open_channel(target, "sam.v1.DecoderService") as channel:
        stub = pb_grpc.DecoderServiceStub(channel)

        async def click(_: int) -> None:
            x, y = next(places)
            prompt = pb.Prompt(points=[pb.Point(x=x, y=y, label=pb.POINT_LABEL_FOREGROUND)])
            request = pb.SegmentImageRequest(image=image_pb2.ImageReference(image_id=IMAGE_ID), prompts=[prompt])
            await stub.SegmentImage(request, timeout=30)

        ways: dict[str, Click] = {"gRPC": click, "in process": in_process.click}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            await clicks(way, max(CLIENTS), 1)
        for _ in range(rounds):
            for name, way in ways.items():
                rate, times = await clicks(way, max(CLIENTS), seconds)
                rates[name].append(rate)
                taken[name] += times
    return {name: (float(np.median(rates[name])), taken[name]) for name in ways}


async def embed(url: str) -> npt.NDArray[np.float32]:
    """Embed the picture under its name and return its embedding."""
    picture = io.BytesIO()
    Image.open(_PHOTOGRAPH).resize((SIZE.width, SIZE.height)).save(picture, "JPEG", quality=90)
    image = {"type": "base64", "value": base64.b64encode(picture.getvalue()).decode()}
    body = {"image": image, "image_id": IMAGE_ID, "format": "binary"}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/sam/embed_image", json=body) as response:
        response.raise_for_status()
        features: npt.NDArray[np.float32] = np.load(io.BytesIO(await response.read()))
        return features


@contextmanager
def reference_server(features: npt.NDArray[np.float32], folder: Path) -> Iterator[str]:
    """Run it; yield its address."""
    path = folder / f"{SIZE.height}x{SIZE.width}.npy"
    np.save(path, features)
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.reference_server", str(path), str(port)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def reachable(url: str) -> None:
    """Return once something answers there."""
    async with aiohttp.ClientSession() as session:
        until = time.monotonic() + _START_S
        while True:
            try:
                async with session.get(f"{url}/openapi.json"):
                    return
            except aiohttp.ClientError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.2)


def percentile(taken: list[float], share: float) -> float:
    """Return the time that so many percent stay below."""
    return float(np.percentile(taken, share))


async def measure(
    running: Stack, folder: Path, rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, float]:
    """Measure everything, print the figures and return the ratios."""
    features = await embed(running.gateway.url)
    urls = {_OURS: running.gateway.url}
    with ExitStack() as held:
        if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
            say(f"{' and '.join(missing)} not installed: there is no other server to compare with over HTTP")
        else:
            urls[_OTHER] = held.enter_context(reference_server(features, folder))
            await reachable(urls[_OTHER])
        found = await over_http(urls, rounds, seconds)
    ratios = {}
    for clients in CLIENTS:
        for name in urls:
            rate, taken = found[name, clients]
            say(
                f"HTTP, {clients} client(s)   {name:20s} {rate:8.1f} clicks/s   p50 {percentile(taken, 50):7.1f} ms   "
                f"p99 {percentile(taken, 99):7.1f} ms   worst {max(taken):7.1f} ms   {len(taken)} clicks"
            )
        if _OTHER in urls:
            (own, own_taken), (other, other_taken) = (found[name, clients] for name in (_OURS, _OTHER))
            ratios[f"http_rate_{clients}"] = own / other
            ratios[f"http_p50_{clients}"] = percentile(own_taken, 50) / percentile(other_taken, 50)
    calls = await over_grpc(running.decoders[0].target, InProcess(features), rounds, seconds)
    for name, (rate, taken) in calls.items():
        say(
            f"8 callers          {name:20s} {rate:8.1f} clicks/s   p50 {percentile(taken, 50):7.1f} ms   "
            f"p99 {percentile(taken, 99):7.1f} ms   worst {max(taken):7.1f} ms   {len(taken)} clicks"
        )
    ratios["grpc_share_of_in_process"] = calls["gRPC"][0] / calls["in process"][0]
    return ratios


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object of ratios and nothing else")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=4, help="how long a turn is")
    arguments = parser.parse_args()
    say: Callable[[str], None] = (lambda _: None) if arguments.json else (lambda text: print(text, flush=True))
    about = hardware()
    say(json.dumps(about))
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        redis = start_redis(folder)
        held.callback(redis.stop)
        environment = {"SAMOVAR_MODEL": "starter"}
        running = held.enter_context(stack(folder, redis.url, encoders=1, decoders=1, environment=environment))
        ratios = asyncio.run(measure(running, folder, arguments.rounds, arguments.seconds, say))
    if arguments.json:
        print(json.dumps({**ratios, "hardware": about}))
    else:
        for name, ratio in ratios.items():
            say(f"{name:28s} {ratio:.2f}")


if __name__ == "__main__":
    main()
