"""`samovar`: one command for everything.

A sub-command's module is imported when that sub-command is used, and not before: `samovar --help` is instant, and
neither `samovar gateway` nor `samovar healthcheck` needs torch to be installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import click


class _SubCommand(NamedTuple):
    module: str
    summary: str


# The command itself is the module's `command`. The summaries stand here, so that help needs none of the modules.
_SUB_COMMANDS = {
    "serve": _SubCommand("samovar.serve", "Serve everything from one process: the quick start."),
    "encoder": _SubCommand("samovar.roles.encoder", "Run an encoder replica: images in, embeddings into Redis."),
    "decoder": _SubCommand("samovar.roles.decoder", "Run a decoder replica: prompts in, masks out."),
    "gateway": _SubCommand("samovar.roles.gateway", "Run a gateway replica: HTTP in front of the other two."),
    "segment": _SubCommand("samovar.segment", "Segment one picture, by a server or in this process."),
    "embed": _SubCommand("samovar.embed", "Have a server embed many pictures, to be segmented later."),
    "weights": _SubCommand("samovar.weights", "List, download and verify checkpoints."),
    "keys": _SubCommand("samovar.keys", "Make API keys, and look at files of them."),
    "certs": _SubCommand("samovar.certs", "Write certificates for trying out TLS."),
    "doctor": _SubCommand("samovar.doctor", "Check what serving needs here, and say what to do."),
    "healthcheck": _SubCommand("samovar.healthcheck", "Ask a service whether it is ready: exit status 0 or 1."),
}


class _LazyGroup(click.Group):
    """A group that imports a sub-command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a newcomer needs them."""
        return list(_SUB_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a sub-command."""
        known = _SUB_COMMANDS.get(cmd_name)
        if known is None:
            return None
        try:
            command = import_module(known.module).command
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"'samovar {cmd_name}' needs the package {error.name}, which this installation lacks: "
                "pip install 'samovar[all]', or the extra of that service."
            ) from error
        assert isinstance(command, click.Command)  # noqa: S101 (for the type checker; the table above is ours)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, known.summary) for name, known in _SUB_COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every flag has a variable: --port is SAMOVAR_PORT. A flag wins. 'samovar COMMAND --help' explains them.",
)
@click.version_option(package_name="samovar")
def command() -> None:
    """Samovar serves Segment Anything: heat the water once, pour many cups."""


def main() -> None:
    """Run the command line as a program."""
    command.main(prog_name="samovar")
