"""The command line: what it offers, what it imports, how it takes its settings."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from pydantic_core import PydanticUndefined

from samovar.cli import command
from samovar.settings import ServeSettings
from tests.samovar.processes import run_samovar

SUB_COMMANDS = [
    "serve",
    "encoder",
    "decoder",
    "gateway",
    "segment",
    "embed",
    "weights",
    "keys",
    "certs",
    "doctor",
    "healthcheck",
]
ROLES = ["serve", "encoder", "decoder", "gateway", "doctor"]


def sub_command(name: str) -> click.Command:
    """Return a sub-command, imported."""
    found = command.get_command(click.Context(command), name)
    assert found is not None
    return found


def imported_by(program: str) -> set[str]:
    """Return the top-level packages that a program has imported at its end."""
    program += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split())


def test_help_lists_everything() -> None:
    """`samovar --help` lists every sub-command with what it is for."""
    done = run_samovar("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert listed[: len(SUB_COMMANDS)] == SUB_COMMANDS


def test_help_imports_next_to_nothing() -> None:
    """`samovar --help` is instant: no service, no torch, no gRPC."""
    loaded = imported_by("from samovar.cli import command\ncommand.main(['--help'], standalone_mode=False)")
    assert not loaded & {
        "torch",
        "numpy",
        "grpc",
        "pydantic",
        "fastapi",
        "encoder_service",
        "decoder_service",
        "gateway",
    }


@pytest.mark.parametrize("name", ["gateway", "healthcheck", "weights"])
def test_without_torch(name: str) -> None:
    """What runs where no torch is installed does not import it."""
    program = f"from samovar.cli import command\ncommand.main(['{name}', '--help'], standalone_mode=False)"
    assert "torch" not in imported_by(program)


def test_health_check_imports_little() -> None:
    """The health check, which a container runs every few seconds, leaves the services alone."""
    loaded = imported_by("import samovar.healthcheck")
    assert not loaded & {"torch", "numpy", "pydantic", "sam", "gateway"}


def test_unknown_command() -> None:
    """A misspelt sub-command is named, with exit status 2."""
    done = run_samovar("serv")
    assert done.returncode == 2
    assert "No such command 'serv'" in done.stderr


@pytest.mark.parametrize("name", ROLES)
def test_every_flag_explains_itself_and_names_its_variable(name: str) -> None:
    """Every flag has a sentence on its effect and the variable that stands for it."""
    options = [parameter for parameter in sub_command(name).params if isinstance(parameter, click.Option)]
    assert len(options) > 5
    for option in options:
        assert option.help
        assert f"[$SAMOVAR_{str(option.name).upper()}]" in option.help
        assert "." in option.help


@pytest.mark.parametrize("name", ["list", "pull", "verify"])
def test_weights_have_variables_too(name: str) -> None:
    """The flags of `samovar weights` have variables as well."""
    group = sub_command("weights")
    assert isinstance(group, click.Group)
    options = [parameter for parameter in group.commands[name].params if isinstance(parameter, click.Option)]
    assert options
    for option in options:
        assert str(option.envvar).startswith("SAMOVAR_")


def test_serve_takes_every_setting_but_targets() -> None:
    """The all-in-one can be told whatever its parts can, but where they find one another."""
    parts = {option.name for role in ("encoder", "decoder", "gateway") for option in sub_command(role).params}
    assert parts - set(ServeSettings.model_fields) == {
        "encoder_target",
        "decoder_target",
        # There is one decoder, and one place that tells what is counted.
        "decoder_affinity",
        "metrics_port",
        # Between processes on one machine there is nothing to balance.
        "max_connection_age_s",
        "max_message_bytes",
    }


def test_every_setting_has_a_default() -> None:
    """`samovar serve` needs no flag."""
    for name, info in ServeSettings.model_fields.items():
        assert info.default is not PydanticUndefined, name


def test_a_flag_wins_over_its_variable() -> None:
    """The variable is read, and the flag wins; a refused value is told by both names."""
    told = "--port (SAMOVAR_PORT): Input should be less than or equal to 65535"
    by_variable = CliRunner().invoke(command, ["serve"], env={"SAMOVAR_PORT": "99999"})
    assert by_variable.exit_code == 2
    assert told in by_variable.stderr
    by_flag = CliRunner().invoke(command, ["serve", "--port", "77777"], env={"SAMOVAR_PORT": "9001"})
    assert by_flag.exit_code == 2
    assert told in by_flag.stderr
