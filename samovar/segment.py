"""`samovar segment`: the masks of one picture, from a server or from a model loaded for the occasion."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from samovar.remote import (
    EXIT_STATUSES,
    api_key_option,
    server_option,
    timeout_option,
    tls_ca_option,
    tls_of,
    with_exit_statuses,
)

if TYPE_CHECKING:
    from rich.status import Status

    from samovar.client import Prompt, Segmentation, Source
    from samovar.client.everything import OnProgress

_OUTPUTS = (".png", ".json")
_OVERLAYS = (".png", ".jpg", ".jpeg", ".webp")


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between."""

    def __init__(self, form: str, *counts: int) -> None:
        self.name = form
        self._counts = counts

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in self._counts:
            self.fail(f"'{value}' is not of the form {self.name}.", param, ctx)
        return numbers


class _File(click.Path):
    """A file to be written, whose ending says as what."""

    def __init__(self, endings: tuple[str, ...]) -> None:
        super().__init__(dir_okay=False, writable=True)
        self._endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() not in self._endings:
            self.fail(f"'{value}' ends in none of {', '.join(self._endings)}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {path.parent}.", param, ctx)
        return path


@click.command(epilog=EXIT_STATUSES)
@click.argument("picture")
@click.option(
    "--point",
    "points",
    multiple=True,
    type=_Numbers("X,Y[,LABEL]", 2, 3),
    help="A point on the object in pixels, e.g. 380,350; off it with a label of 0: 80,300,0. May be repeated.",
)
@click.option(
    "--box",
    "boxes",
    multiple=True,
    type=_Numbers("X0,Y0,X1,Y1", 4),
    help="A box around the object, in pixels. Repeated: a mask for each.",
)
@click.option("--multimask", is_flag=True, help="Three candidate masks for each prompt.")
@click.option(
    "--everything",
    is_flag=True,
    help="In place of points and boxes: all that a grid of points finds, as SAM's automatic mask generator.",
)
@click.option(
    "--points-per-side",
    type=click.IntRange(1, 64),
    metavar="N",
    help="With --everything: the points along each side of the grid; 32 if not said.",
)
@click.option(
    "--min-score",
    type=float,
    metavar="SCORE",
    help="With --everything: the predicted IoU that a mask must exceed; 0.88 if not said, 0 keeps all.",
)
@click.option(
    "--min-stability",
    type=float,
    metavar="SCORE",
    help="With --everything: the least stability score of a mask; 0.95 if not said, 0 keeps all.",
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=_File(_OUTPUTS),
    metavar="FILE",
    help="Where to write the masks: .png, white on black, numbered if there are several; or .json with COCO run "
    "lengths. May be repeated.",
)
@click.option("--overlay", type=_File(_OVERLAYS), metavar="FILE", help="Where to write the picture with its masks.")
@server_option(help="The server to ask. Left out: a model is loaded into this process, which takes seconds.")
@api_key_option
@tls_ca_option
@click.option("--model", metavar="NAME", help="Without a server: vit_b, vit_l, vit_h or starter.  [$SAMOVAR_MODEL]")
@click.option("--checkpoint", metavar="FILE", help="Without a server: a checkpoint file.  [$SAMOVAR_CHECKPOINT]")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the result, or the error, as one JSON object.")
@with_exit_statuses
def command(
    picture: str,
    points: tuple[tuple[float, ...], ...],
    boxes: tuple[tuple[float, ...], ...],
    multimask: bool,
    everything: bool,
    points_per_side: int | None,
    min_score: float | None,
    min_stability: float | None,
    outputs: tuple[Path, ...],
    overlay: Path | None,
    server: str | None,
    api_key: str | None,
    tls_ca: Path | None,
    model: str | None,
    checkpoint: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Segment PICTURE: a file, an https URL, or - for standard input.

    All points together, and the box if there is one, are one prompt.
    """
    from samovar.client import Source
    from samovar.mask_files import summary, write, write_overlay

    options = {
        "points_per_side": points_per_side,
        "pred_iou_thresh": min_score,
        "stability_score_thresh": min_stability,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if everything and (points or boxes or multimask):
        raise click.UsageError("--everything has points of its own: leave out --point, --box and --multimask.")
    if given and not everything:
        raise click.UsageError("--points-per-side, --min-score and --min-stability go with --everything.")
    if not points and not boxes and not everything:
        raise click.UsageError("There is nothing to segment: give a --point, a --box or --everything.")
    if points and len(boxes) > 1:
        raise click.UsageError("Points go with one box: leave out the points, or all boxes but one.")
    if server is not None and (model is not None or checkpoint is not None):
        raise click.UsageError("--model and --checkpoint are for use without --server, which has its own model.")
    source = Source.of(sys.stdin.buffer.read() if picture == "-" else picture)
    if overlay is not None and source.url:
        raise click.UsageError("--overlay draws on a picture of yours: download it first.")
    job = _Job(source, given) if everything else _Job(source, None, _prompts(points, boxes), multimask or None)
    started = time.monotonic()
    if server is not None:
        result = _ask(server, api_key, tls_ca, job, timeout_s)
    else:
        result = _in_process(model, checkpoint, job, timeout_s)
    elapsed_s = time.monotonic() - started
    written = [path for output in outputs for path in write(result, output)]
    if overlay is not None:
        write_overlay(source.content, result.masks, overlay)
        written.append(overlay)
    if as_json:
        files = {"files": [str(path) for path in written]} if written else {}
        click.echo(json.dumps({**summary(result), **files, "time_s": round(elapsed_s, 4)}))
    else:
        _tell(result, written)


def _prompts(points: tuple[tuple[float, ...], ...], boxes: tuple[tuple[float, ...], ...]) -> list[Prompt]:
    from samovar.client import Prompt

    if not points:
        return [Prompt(box=box) for box in boxes]
    coords = [point[:2] for point in points]
    labels = [point[2] if len(point) > 2 else 1 for point in points]
    return [Prompt(coords, labels, boxes[0] if boxes else None)]


class _Job(NamedTuple):
    """What is to be segmented: `prompts`, or with `options` everything."""

    source: Source
    options: dict[str, Any] | None
    prompts: list[Prompt] | None = None
    multimask: bool | None = None


def _ask(server: str, api_key: str | None, tls_ca: Path | None, job: _Job, timeout_s: float) -> Segmentation:
    from rich.console import Console

    from samovar.client import SamClient

    with SamClient(server, api_key=api_key, timeout_s=timeout_s, tls=tls_of(tls_ca, server)) as client:
        if job.options is None:
            return client.segment(job.source, prompts=job.prompts, multimask_output=job.multimask)
        with Console(stderr=True).status("Segmenting everything") as status:
            found = client.segment_everything(job.source, on_progress=_telling(status), **job.options)
        return found.as_segmentation()


def _telling(status: Status) -> OnProgress:
    return lambda progress: status.update(f"Segmenting: {progress.points_done} of {progress.points_total} points")


def _in_process(model: str | None, checkpoint: str | None, job: _Job, timeout_s: float) -> Segmentation:
    from pydantic import ValidationError
    from rich.console import Console

    from sam.command import explain
    from sam.lifecycle import let_waiting_threads_sleep
    from sam.logs import configure_logs
    from samovar.settings import ServeSettings

    given = {name: value for name, value in (("model", model), ("checkpoint", checkpoint)) if value is not None}
    try:
        # What is not given comes from SAMOVAR_* as for `samovar serve`; its log would only be in the way.
        settings = ServeSettings(**{"log_level": "error", **given})  # type: ignore[arg-type]
    except ValidationError as error:
        raise click.UsageError(explain(error)) from None
    configure_logs(settings, "samovar")
    let_waiting_threads_sleep()
    console = Console(stderr=True)

    async def run() -> Segmentation:
        # Seconds of importing torch.
        from samovar.in_process import client_in_process

        with console.status("Loading the model") as status:
            async with client_in_process(settings, timeout_s) as client:
                status.update("Embedding the picture")
                if job.options is None:
                    return await client.segment(job.source, prompts=job.prompts, multimask_output=job.multimask)
                found = await client.segment_everything(job.source, on_progress=_telling(status), **job.options)
                return found.as_segmentation()

    return asyncio.run(run())


def _tell(result: Segmentation, written: list[Path]) -> None:
    height, width = result.picture.size
    click.echo(f"{width} x {height} pixels, model {result.picture.model}")
    for number, (score, mask, box) in enumerate(zip(result.scores, result.masks, result.boxes, strict=True), 1):
        edges = ",".join(f"{edge:.0f}" for edge in box)
        click.echo(f"mask {number}: score {score:.3f}, {mask.mean():.1%} of the picture, in the box {edges}")
    for path in written:
        click.echo(f"wrote {path}")
