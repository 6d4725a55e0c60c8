"""The page at /: a fixed set of three files of the package, read once. No request ever names a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_FILES: Mapping[str, tuple[str, str]] = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/playground.js": ("playground.js", "text/javascript; charset=utf-8"),
    "/playground.css": ("playground.css", "text/css; charset=utf-8"),
}
PATHS = tuple(_FILES)
KINDS: Mapping[str, str] = {path: kind.partition(";")[0] for path, (_, kind) in _FILES.items()}


def page(path: str) -> Callable[[Request], Awaitable[Response]]:
    """The handler of one of PATHS."""
    name, kind = _FILES[path]
    content = files(__name__).joinpath(name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(content, headers={"content-type": kind, "content-security-policy": _CSP})

    return send
