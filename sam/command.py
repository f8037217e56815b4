"""Makes a command line out of a settings class, so that a setting is declared in one place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sam.errors import SamovarError, StartupError
from sam.settings import ENV_PREFIX, Settings

S = TypeVar("S", bound=Settings)


def settings_command(name: str, settings: type[S], run: Callable[[S], None], description: str) -> click.Command:
    """Build a command whose flags are the fields of `settings` and which calls `run` with them.

    A flag that is not given falls back to its `SAMOVAR_*` variable, then to its default. A value that is refused ends
    the command with exit status 2, a service that cannot start with 1, and each with one line that says why.
    """

    def callback(**flags: Any) -> None:
        given = {flag: value for flag, value in flags.items() if value is not None}
        try:
            parsed = settings(**given)
        except ValidationError as error:
            raise click.UsageError(explain(error)) from None
        try:
            run(parsed)
        except (SamovarError, StartupError) as error:
            raise click.ClickException(str(error)) from None

    return click.Command(
        name,
        params=[_option(field, info) for field, info in settings.model_fields.items()],
        callback=callback,
        help=description,
        context_settings={"max_content_width": 100, "show_default": False},
    )


def main(command: click.Command) -> None:
    """Run a command as a program."""
    command.main(prog_name=command.name, windows_expand_args=False)
    sys.exit(0)


def _option(field: str, info: FieldInfo) -> click.Option:
    flag = field.replace("_", "-")
    default = info.get_default()
    shown = f"  [default: {default}]" if default not in (None, "") else ""
    help_text = f"{info.description}{shown}  [${ENV_PREFIX}{field.upper()}]"
    kind = _unwrap(info.annotation)
    if kind is bool:
        return click.Option([f"--{flag}/--no-{flag}"], default=None, help=help_text)
    if get_origin(kind) is Literal:
        choice = click.Choice([str(value) for value in get_args(kind)])
        return click.Option([f"--{flag}"], type=choice, default=None, help=help_text)
    metavar = {int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(kind, "PATH")
    # The settings class converts and checks the text, with the bounds it declares.
    return click.Option([f"--{flag}"], default=None, metavar=metavar, help=help_text)


def _unwrap(annotation: Any) -> Any:
    """Return `X` for `X | None`."""
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    optional = len(arguments) == 1 and type(None) in get_args(annotation)
    return arguments[0] if optional else annotation


def explain(error: ValidationError) -> str:
    """Return what is wrong with some settings, one line for each, by flag and variable."""
    lines = []
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else "settings"
        flag, variable = field.replace("_", "-"), f"{ENV_PREFIX}{field.upper()}"
        lines.append(f"--{flag} ({variable}): {problem['msg']}")
    return "\n".join(lines)
