"""Write docs/http.md from the OpenAPI document of the gateway; a test holds the page to it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from gateway.app import build_app
from gateway.clients import Services
from gateway.readiness import Readiness
from gateway.settings import GatewayOptions
from gateway.workers import Workers

PAGE = Path(__file__).resolve().parent.parent / "docs" / "http.md"

_INTRODUCTION = """# HTTP reference

Every route of the gateway and every field of its bodies, as `/openapi.json` describes them and `/docs` lets you try
them. This page is written from that document by `make docs`; [clients.md](clients.md) shows how to call the routes.

Headers of every answer are `X-Request-ID` (yours, or a new one) and `Server-Timing`, and where a picture is concerned
`X-Cache` (`hit`, `miss`, `wait`, `bypass`), `X-Image-Digest` and `X-Model`. `Server-Timing` has the milliseconds of
`receive` (the body on its way), `queue`, `fetch`, `encode`, `store`, `decode`, `render` and `total`, as far as there
were any. `X-Request-Timeout-Ms` of a request shortens its deadline; `Priority: u=4` to `u=7` (RFC 9218) lets embedding
wait while others are more urgent. An API key travels as `Authorization: Bearer KEY`, as `?api_key=KEY`, or in the body.

## Errors

An error is `{"message", "reason", "request_id"}`, see [ErrorAnswer](#erroranswer);
[README](../README.md#errors) lists the reasons.
"""

# An example's picture, which is a screenful of base64, is cut in the page.
_LONGEST_TEXT = 60

Schema = dict[str, Any]


def openapi() -> Schema:
    """Return the OpenAPI document of a gateway with default settings."""
    return asyncio.run(_openapi())


async def _openapi() -> Schema:
    # Nothing is called: the channels connect when they are first used, and the threads begin with their first work.
    services = Services(encoder_target="127.0.0.1:50051", decoder_target="127.0.0.1:50052")
    workers = Workers(1)
    try:
        app = build_app(GatewayOptions(), services, Readiness(services), workers)
        document: Schema = app.openapi()
        return document
    finally:
        await workers.close()
        await services.close()


def render(document: Schema) -> str:
    """Return the page."""
    parts = [_INTRODUCTION, _errors(document)]
    tag = None
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            own = (operation.get("tags") or ["Others"])[0]
            if own != tag:
                tag = own
                parts.append(f"## {tag}\n")
            parts += _operation(document, method, path, operation)
    parts.append("## Bodies\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        # FastAPI adds two of its own, for the answers that ours stand in for.
        if name not in {"HTTPValidationError", "ValidationError"} and schema.get("properties"):
            parts += [f"### {name}\n", _paragraphs(schema.get("description", "")), _fields(schema)]
    return "\n".join(part for part in parts if part)


def _operation(document: Schema, method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`\n"
    yield f"{operation['summary']}. " + _paragraphs(operation["description"])
    parameters = operation.get("parameters", [])
    if parameters:
        rows = [
            f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {_cell(one.get('description', ''))} |"
            for one in parameters
        ]
        yield "\n".join(["| parameter | in | type | meaning |", "|---|---|---|---|", *rows]) + "\n"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        yield f"Body: {_type(body['schema'])}.\n"
        for example in body.get("examples", {}).values():
            yield f"{example['summary']}:\n\n```json\n{json.dumps(_cut(example['value']))}\n```\n"
    rows = [f"| {status} | {_answer(answer)} |" for status, answer in operation["responses"].items() if status < "300"]
    yield "\n".join(["| status | body |", "|---|---|", *rows]) + "\n"
    errors = [status for status in sorted(operation["responses"]) if status >= "400"]
    if errors:
        yield f"Errors: {', '.join(errors)}.\n"


def _errors(document: Schema) -> str:
    """Return what the statuses of errors mean, which is the same on every route."""
    rows = {
        status: f"| {status} | {_cell(answer['description'])} |"
        for methods in document["paths"].values()
        for operation in methods.values()
        for status, answer in sorted(operation["responses"].items())
        # What FastAPI describes by itself says less.
        if status >= "400" and answer["description"] not in {"Validation Error", HTTPStatus(int(status)).phrase}
    }
    return "\n".join(["| status | meaning |", "|---|---|", *(rows[status] for status in sorted(rows))]) + "\n"


def _answer(answer: Schema) -> str:
    kinds = []
    for media_type, content in answer.get("content", {}).items():
        shown = _type(content.get("schema", {})) if media_type == "application/json" else f"`{media_type}`"
        if shown:
            kinds.append(shown)
    return " or ".join(kinds)


def _fields(schema: Schema) -> str:
    required = set(schema.get("required", []))
    rows = [
        f"| `{name}` | {_type(field)} | {_default(name in required, field)} | {_cell(field.get('description', ''))} |"
        for name, field in schema["properties"].items()
    ]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _default(required: bool, field: Schema) -> str:
    if required:
        return "required"
    default = field.get("default")
    return "" if default is None else f"`{json.dumps(default)}`"


def _type(schema: Schema) -> str:
    """Return a type in a word or two; names of bodies are links."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = [_type(kind) for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type", "")
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
        item = _type(schema.get("items", {}))
        return f"list of {item}" if item else "list"
    return {"string": "text", "object": "object"}.get(kind, str(kind))


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_cut(part) for part in value]
    return value[:_LONGEST_TEXT] + "..." if isinstance(value, str) and len(value) > _LONGEST_TEXT else value


def _paragraphs(text: str) -> str:
    joined = [re.sub(r"\s+", " ", paragraph).strip() for paragraph in text.split("\n\n")]
    return "\n\n".join(joined) + "\n" if text else ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(openapi()))
