"""`samovar keys`: makes API keys."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from sam.errors import StartupError
from sam.key_limits import NO_LIMITS
from sam.keys_file import HASHED, digest_of, read_keys, read_line

KEY_BYTES = 32
"""Random bytes in a key: nobody can guess one, so that a plain hash hides it well enough."""


@click.group()
def command() -> None:
    """Make API keys, and look at files of them."""


@command.command("new")
@click.option("--name", metavar="NAME", help="What logs are to call its holder: letters, digits, '.', '_', '-'.")
@click.option("--rate", metavar="N/s", help="How many requests a second (or N/min) it may make of one replica.")
@click.option("--concurrency", metavar="N", type=click.IntRange(min=1), help="How many requests at the same time.")
@click.option(
    "--file",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of keys to add its line to; made if it is not there. Left out: the line is printed as well.",
)
def new_key(name: str | None, rate: str | None, concurrency: int | None, file: Path | None) -> None:
    """Make a key and print it, once: what is kept is a hash of it.

    Without --file, the second line printed is the one for the file of keys.
    """
    key = f"samovar-{secrets.token_urlsafe(KEY_BYTES)}"
    options = {"name": name, "rate": rate, "concurrency": concurrency}
    given = [f"{option}={value}" for option, value in options.items() if value is not None]
    line = " ".join([f"{HASHED}{digest_of(key).hex()}", *given])
    try:
        read_line(line, NO_LIMITS)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from None
    if file is None:
        click.echo(f"{key}\n{line}")
        return
    try:
        old = file.read_text() if file.exists() else ""
        gap = "" if not old or old.endswith("\n") else "\n"
        with open(file, "a", opener=_private) as written:
            written.write(f"{gap}{line}\n")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written to: {error.strerror}.") from None
    click.echo(key)


@command.command("check")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
def check_keys(file: Path) -> None:
    """Read a file of keys as the services do, and list its holders and their limits."""
    try:
        keys = read_keys(file, NO_LIMITS)
    except StartupError as error:
        raise click.ClickException(str(error)) from None
    for key in keys:
        limits = [f"{key.limits.rate_per_s:g} requests/s"] if key.limits.rate_per_s else []
        limits += [f"{key.limits.concurrency} at once"] if key.limits.concurrency else []
        click.echo(f"{key.name or '(no name)'}: {', '.join(limits) or 'no limits of its own'}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
