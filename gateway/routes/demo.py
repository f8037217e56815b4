"""The demo page: a picture, clicks and masks in the browser. It uses the public routes like any other client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

# By the ends of the names, not by the machine's own table: a module served as anything else is not run.
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}

_PAGE = "index.html"

# The page loads its own files and talks to its own server, and nothing else; no text is ever taken for code.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time, and answered with 304: a new release is seen at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def demo_router() -> APIRouter:
    """Build the routes; the files are read once, here."""
    router = APIRouter(include_in_schema=False)
    files = _files()

    @router.get("/demo")
    @router.head("/demo")
    async def page(request: Request) -> Response:
        """Answer with the page."""
        return _answer(request, files[_PAGE])

    @router.get("/demo/")
    @router.head("/demo/")
    async def page_with_a_slash() -> Response:
        """Send to the page: the addresses in it are relative to the one without the slash."""
        return RedirectResponse("../demo")

    @router.get("/demo/{name}")
    @router.head("/demo/{name}")
    async def asset(request: Request, name: str) -> Response:
        """Answer with a file that the page uses."""
        if name not in files or name == _PAGE:
            raise HTTPException(404)
        return _answer(request, files[name])

    return router


def _files() -> dict[str, _File]:
    """Read every file of the page."""
    folder = resources.files("gateway") / "demo"
    found = {}
    for entry in folder.iterdir():
        media_type = _MEDIA_TYPES.get(PurePosixPath(entry.name).suffix)
        if media_type is not None:
            content = entry.read_bytes()
            found[entry.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")}
    if known & {file.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, 200, headers, file.media_type)
