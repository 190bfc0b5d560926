"""The pages for people: `/` looks at rows, `/docs` tries the interface out.

Their files are those of packages, the same on every server: they hold nothing of this one and
are public. Whatever they show they ask the other routes for, with the credentials of whoever
looks at them.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from teacher_proto.page.files import content_type, page_files

# Of fastapi-offline, which ships Swagger UI.
SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")
# Nothing comes from elsewhere, and nothing that stands in a page is run.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept by the browser, and asked for again before it is used.
    "Cache-Control": "no-cache",
}
AT = {"index.html": "/", "docs.html": "/docs"}


# From so many bytes on a file is kept compressed too: whoever asks for it makes the server send.
LARGE = 16 * 1024
GZIP = "gzip"


@dataclass(frozen=True)
class _File:
    """A file, and what it is compressed where it is large."""

    content: bytes
    type: str
    tag: str
    packed: bytes | None


@cache
def _files() -> dict[str, _File]:
    return {path: _file(content, kind) for path, content, kind in _contents()}


def _file(content: bytes, kind: str) -> _File:
    packed = gzip.compress(content, mtime=0) if len(content) >= LARGE else None
    return _File(content, kind, _tag(content), packed)


def _contents() -> Iterator[tuple[str, bytes, str]]:
    """(path of the route, content, type) of each file."""
    for name, content in page_files().items():
        yield AT.get(name, f"/page/{name}"), content, content_type(name)
    folder = files("fastapi_offline") / "static"
    for name in SWAGGER:
        yield f"/docs/{name}", (folder / name).read_bytes(), content_type(name)


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def page_paths() -> frozenset[str]:
    """The paths of all files, each of which is answered to everybody."""
    return frozenset(_files())


def page_routes() -> list[Route]:
    """One route for each file: no path that a caller writes becomes a path of a file."""
    return [Route(path, _answer(path, file), methods=["GET"]) for path, file in _files().items()]


def _answer(path: str, file: _File) -> Callable[[Request], Awaitable[Response]]:
    """The handler of one file."""

    async def answer(request: Request) -> Response:
        # A route's pattern ends in `$`, which matches before a line break too.
        if request.scope["path"] != path:
            raise HTTPException(404)
        content, headers = file.content, HEADERS | {"ETag": file.tag}
        if file.packed is not None:
            headers["Vary"] = "Accept-Encoding"
            if _takes_gzip(request.headers.getlist("accept-encoding")):
                content = file.packed
                headers |= {"Content-Encoding": GZIP, "ETag": f"W/{file.tag}"}
        if file.tag in _tags(request.headers.getlist("if-none-match")):
            headers.pop("Content-Encoding", None)
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=file.type)

    return answer


def _tags(kept: list[str]) -> set[str]:
    """Of If-None-Match, which compares weakly: the tag of what is compressed is marked so."""
    return {tag.strip().removeprefix("W/") for one in kept for tag in one.split(",")}


def _takes_gzip(accepted: list[str]) -> bool:
    """Of Accept-Encoding: whether gzip is named, and not with a weight of 0."""
    for one in ",".join(accepted).lower().split(","):
        name, *parameters = (part.replace(" ", "").strip() for part in one.split(";"))
        if name in (GZIP, "x-gzip"):
            return not any(p.startswith("q=") and not p[2:].strip("0.") for p in parameters)
    return False
