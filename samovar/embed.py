"""`samovar embed`: have many pictures embedded, so that segmenting them later takes no time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samovar.remote import (
    EXIT_STATUSES,
    FAILED,
    REFUSED,
    api_key_option,
    describe,
    is_refusal,
    server_option,
    timeout_option,
    tls_ca_option,
    tls_of,
    with_exit_statuses,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from samovar.client import AsyncSamClient, Source

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}

EMBEDDED, STORED, REFUSED_WORD, FAILED_WORD = "embedded", "stored already", "refused", "failed"


@dataclass
class _Run:
    """What one run has to do and has done."""

    client: AsyncSamClient
    pending: Iterator[str]
    naming: str
    as_json: bool
    counts: Counter[str] = field(default_factory=Counter)

    async def work(self, progress: Progress) -> None:
        """Embed one picture after another until none is left.

        Raises:
            ClientError: there is no server, and the rest need not be tried.
        """
        from sam.errors import SamovarError

        for name in self.pending:
            try:
                outcome, about = await self._embed(name)
            except (SamovarError, OSError) as error:
                outcome, about = (REFUSED_WORD if is_refusal(error) else FAILED_WORD), {"error": describe(error)}
                if not self.as_json:
                    progress.console.print(f"{name}: {outcome}: {error}", style="red", markup=False, highlight=False)
            self.counts[outcome] += 1
            if self.as_json:
                click.echo(json.dumps({"picture": name, "outcome": outcome, **about}))
            progress.advance(progress.task_ids[0])

    async def _embed(self, name: str) -> tuple[str, dict[str, object]]:
        from samovar.client import Source

        source = await asyncio.to_thread(Source.of, name)
        image_id = self._image_id(name, source)
        if source.content:
            found = await self.client.find(image_id)
            if found is not None and found.digest == source.digest:
                return STORED, {"image_id": image_id, "image_digest": found.digest}
        picture = await self.client.embed(source, image_id, bulk=True)
        outcome = STORED if picture.cached else EMBEDDED
        return outcome, {"image_id": picture.image_id, "image_digest": picture.digest}

    def _image_id(self, name: str, source: Source) -> str:
        if source.url or self.naming == "path":
            return name
        return Path(name).name if self.naming == "name" else source.digest


@click.command(epilog=EXIT_STATUSES)
@click.argument("pictures", nargs=-1, required=True, metavar="DIR|FILE|URL...")
@server_option(default="http://localhost:9001", show_default=True, help="The server that embeds and keeps them.")
@api_key_option
@tls_ca_option
@click.option(
    "--image-id",
    "naming",
    type=click.Choice(["digest", "name", "path"]),
    default="digest",
    show_default=True,
    help="What a picture is called at the server: the SHA-256 of its file, its file name, or its path as given here. "
    "One from a URL is called by that.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="How many pictures are on their way at once.",
)
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for each picture.")
@with_exit_statuses
def command(
    pictures: tuple[str, ...],
    server: str,
    api_key: str | None,
    tls_ca: Path | None,
    naming: str,
    concurrency: int,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Have pictures embedded and kept: files, URLs, and folders with all the pictures in and below them.

    What is stored already is not sent again, so a run that was interrupted is simply started again. A picture that is
    refused is named, and the others go on.
    """
    names = list(_named(pictures))
    if not names:
        raise click.UsageError(f"There are no pictures in {', '.join(pictures)}: {', '.join(sorted(_ENDINGS))}.")
    try:
        counts = asyncio.run(_run(names, server, api_key, tls_ca, naming, concurrency, timeout_s, as_json))
    except KeyboardInterrupt:
        click.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        raise click.exceptions.Exit(130) from None
    words = [f"{counts[word]} {word}" for word in (EMBEDDED, STORED, REFUSED_WORD, FAILED_WORD) if counts[word]]
    click.echo(", ".join(words), err=True)
    if counts[FAILED_WORD]:
        raise click.exceptions.Exit(FAILED)
    if counts[REFUSED_WORD]:
        raise click.exceptions.Exit(REFUSED)


async def _run(
    names: list[str],
    server: str,
    api_key: str | None,
    tls_ca: Path | None,
    naming: str,
    concurrency: int,
    timeout_s: float,
    as_json: bool,
) -> Counter[str]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from samovar.client import AsyncSamClient

    columns = (TextColumn("Embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with AsyncSamClient(server, api_key=api_key, timeout_s=timeout_s, tls=tls_of(tls_ca, server)) as client:
        run = _Run(client, iter(names), naming, as_json)
        console = Console(stderr=True, soft_wrap=True)
        with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
            progress.add_task("", total=len(names))
            workers = [asyncio.create_task(run.work(progress)) for _ in range(min(concurrency, len(names)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.wait(workers)
        return run.counts


def _named(pictures: tuple[str, ...]) -> Iterator[str]:
    """Return files and URLs as they are, and of folders the pictures in them, in their order."""
    for name in pictures:
        if not os.path.isdir(name):
            yield name
            continue
        for folder, folders, files in os.walk(name):
            folders.sort()
            yield from (os.path.join(folder, file) for file in sorted(files) if Path(file).suffix.lower() in _ENDINGS)
