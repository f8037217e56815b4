"""Write README's tables from the code that they describe; a test holds README to them."""

from __future__ import annotations

from pathlib import Path

from decoder_service.settings import DecoderSettings
from encoder_service.settings import EncoderSettings
from gateway.settings import GatewaySettings
from sam.errors import leaves
from sam.settings import ENV_PREFIX, Settings
from samovar.settings import ServeSettings

README = Path(__file__).resolve().parent.parent / "README.md"
COLUMNS: dict[str, type[Settings]] = {
    "serve": ServeSettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
    "gateway": GatewaySettings,
}


def settings_table() -> str:
    """Return all settings with their defaults, their effects and the commands that know them."""
    rows = ["| setting | default | effect | read by |", "|---|---|---|---|"]
    fields = {name: info for settings in reversed(COLUMNS.values()) for name, info in settings.model_fields.items()}
    for name, info in sorted(fields.items()):
        users = [column for column, settings in COLUMNS.items() if name in settings.model_fields]
        defaults = {_shown(COLUMNS[column].model_fields[name].get_default()) for column in users}
        default = " / ".join(sorted(defaults)) if len(defaults) > 1 else defaults.pop()
        readers = "all" if len(users) == len(COLUMNS) else ", ".join(users)
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {default} | {info.description} | {readers} |")
    return "\n".join(rows)


def errors_table() -> str:
    """Return all reasons with their codes and what they mean."""
    rows = ["| reason | gRPC | HTTP | meaning |", "|---|---|---|---|"]
    for leaf in leaves():
        meaning = (leaf.__doc__ or "").strip()
        rows.append(f"| `{leaf.reason}` | {leaf.grpc_code} | {leaf.http_status} | {meaning} |")
    return "\n".join(rows)


def render(readme: str) -> str:
    """Return README's text with its tables made anew."""
    for name, table in (("settings", settings_table()), ("errors", errors_table())):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = readme.partition(start)
        _, _, after = rest.partition(end)
        readme = f"{before}{start}{table}\n{end}{after}"
    return readme


def _shown(default: object) -> str:
    return "" if default is None or default == "" else f"`{default}`"


if __name__ == "__main__":
    README.write_text(render(README.read_text()))
