"""What the commands that talk to a server have in common: where it is, and what their exit statuses mean."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sam.errors import RequestError, SamovarError, StartupError

if TYPE_CHECKING:
    from sam.tls import Tls

FAILED, REFUSED = click.ClickException.exit_code, 3
"""Exit statuses besides 0 and click's 2 for a wrong command line: see `EXIT_STATUSES`."""

EXIT_STATUSES = (
    "Exit status 0: done. 1: the service failed or cannot be reached; the same may work later. 2: the command line is "
    "wrong. 3: a picture, a prompt or the API key was refused."
)

api_key_option = click.option(
    "--api-key", metavar="KEY", envvar="SAMOVAR_API_KEY", show_envvar=True, help="Your API key, if the server asks."
)
tls_ca_option = click.option(
    "--tls-ca",
    metavar="FILE",
    envvar="SAMOVAR_TLS_CA",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The authority of an https server's certificate, if this machine does not trust it anyway.",
)
timeout_option = click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="How long one picture may take, in seconds, retries and all.",
)


def server_option(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that names the server."""
    return click.option(
        "--server", metavar="URL", envvar="SAMOVAR_SERVER", show_envvar=True, callback=_checked_url, **options
    )


def _checked_url(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    if url is not None and not url.lower().startswith(("http://", "https://")):
        raise click.BadParameter("it starts with http:// or https://, e.g. http://localhost:9001.")
    return url


def tls_of(ca: Path | None, server: str) -> Tls | None:
    """Return how to speak TLS with a server, by `tls_ca_option`.

    Raises:
        UsageError: nothing would be encrypted.
    """
    from sam.tls import Tls

    if ca is None:
        return None
    if not server.lower().startswith("https://"):
        raise click.UsageError(f"--tls-ca (SAMOVAR_TLS_CA) is for a server at https://, and this one is at {server}.")
    return Tls(ca)


def with_exit_statuses(function: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line (with `--json` an object) and an exit status."""

    @functools.wraps(function)
    def wrapper(*args: Any, as_json: bool, **kwargs: Any) -> None:
        from samovar.client import ClientError

        try:
            function(*args, as_json=as_json, **kwargs)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"This needs the package {error.name}, which this installation lacks: pip install 'samovar[all]', "
                "or name a server with --server."
            ) from None
        except (SamovarError, ClientError, StartupError, OSError) as error:
            if as_json:
                click.echo(json.dumps({"error": describe(error)}))
            _exit_with(error)

    return wrapper


def describe(error: Exception) -> dict[str, str]:
    """Return what went wrong, for programs: the server's reason, or the name of the error."""
    if isinstance(error, SamovarError):
        return {"reason": error.reason, "message": error.message}
    return {"reason": type(error).__name__, "message": str(error)}


def is_refusal(error: Exception) -> bool:
    """Tell whether the same would be refused again."""
    return isinstance(error, RequestError | OSError)


class _Refused(click.ClickException):
    exit_code = REFUSED


def _exit_with(error: Exception) -> NoReturn:
    raise (_Refused if is_refusal(error) else click.ClickException)(str(error)) from None
