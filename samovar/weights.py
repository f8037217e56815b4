"""`samovar weights`: the published checkpoints on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from sam.command import explain
from sam.errors import StartupError
from sam.logs import configure_logs
from sam.published import DEFAULT_MODEL, PUBLISHED, pull, starter_checkpoint, verify
from sam.settings import ModelSettings

_DEFAULTS = {name: ModelSettings.model_fields[name].get_default() for name in ("weights_dir", "weights_url")}

_folder = click.option(
    "--weights-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DEFAULTS["weights_dir"],
    envvar="SAMOVAR_WEIGHTS_DIR",
    show_default=True,
    show_envvar=True,
    help="The folder in which published checkpoints are kept.",
)
_models = click.argument("models", metavar="[vit_b|vit_l|vit_h]...", nargs=-1, type=click.Choice(list(PUBLISHED)))


def _with_clear_errors(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except StartupError as error:
            raise click.ClickException(str(error)) from None
        except ValidationError as error:
            raise click.UsageError(explain(error)) from None

    return wrapper


@click.group()
def command() -> None:
    """List, download and verify the checkpoints that the authors of SAM publish."""


@command.command("list")
@_folder
def list_checkpoints(weights_dir: Path) -> None:
    """List the published checkpoints, and which of them are here."""
    for model, known in PUBLISHED.items():
        path = weights_dir / known.file_name
        part = path.with_name(path.name + ".part")
        if path.exists():
            state = str(path) if path.stat().st_size == known.size_bytes else f"{path} (not the published size)"
        elif part.exists() and part.stat().st_size:
            state = f"{part.stat().st_size / known.size_bytes:.0%} downloaded"
        else:
            state = "not here"
        click.echo(f"{model}  {known.size_bytes / 2**20:6.0f} MiB  {known.sha256[:12]}  {known.file_name}  {state}")


@command.command("pull")
@_models
@_folder
@click.option(
    "--mirror",
    "--weights-url",
    "mirror",
    metavar="URL",
    default=_DEFAULTS["weights_url"],
    envvar="SAMOVAR_WEIGHTS_URL",
    show_default=True,
    show_envvar=True,
    help="Where to download from: the folder that holds the published files.",
)
@click.option(
    "--or-starter",
    is_flag=True,
    envvar="SAMOVAR_WEIGHTS_OR_STARTER",
    show_envvar=True,
    help="Where nobody asked for a model, succeed without one too, if this build carries a starter to serve.",
)
@_with_clear_errors
def pull_checkpoints(models: tuple[str, ...], weights_dir: Path, mirror: str, or_starter: bool) -> None:
    """Download checkpoints, and verify them.

    An interrupted download is continued. Without an argument: what SAMOVAR_MODEL and SAMOVAR_CHECKPOINT make the
    services look for, which is vit_b if they are unset.
    """
    settings = ModelSettings(weights_dir=weights_dir, weights_url=mirror)
    configure_logs(settings, "weights")
    if not models and (settings.checkpoint or settings.model not in (None, *PUBLISHED)):
        click.echo(f"Nothing to download for {settings.checkpoint or settings.model}.")
        return
    for model in models or (settings.model or DEFAULT_MODEL,):
        try:
            path = pull(model, settings)
        except StartupError as error:
            # A file that is there but wrong is nobody's wish: the services would refuse it as well.
            may_start_small = or_starter and not models and not settings.model and starter_checkpoint() is not None
            if not may_start_small or (weights_dir / PUBLISHED[model].file_name).exists():
                raise
            click.echo(f"{error}\nGoing on without {model}: the services will serve the bundled starter.", err=True)
            return
        click.echo(f"{path} is here and verified.")


@command.command("verify")
@_models
@_folder
@_with_clear_errors
def verify_checkpoints(models: tuple[str, ...], weights_dir: Path) -> None:
    """Compare checkpoints with their published SHA-256. Without an argument: those that are here."""
    here = [model for model, known in PUBLISHED.items() if (weights_dir / known.file_name).exists()]
    if not models and not here:
        raise StartupError(f"There is no published checkpoint in {weights_dir}. 'samovar weights pull' downloads one.")
    for model in models or here:
        path = weights_dir / PUBLISHED[model].file_name
        if not path.exists():
            raise StartupError(f"There is no {path}. 'samovar weights pull {model}' downloads it.")
        verify(path, PUBLISHED[model])
        click.echo(f"{path} is the published one.")
