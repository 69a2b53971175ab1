"""The pages that a browser sees: plain HTML and modules, no build step, nothing from elsewhere.

The playground is the public port's, the live view the admin port's; they share what they look like. Nothing that a page
shows is in its files, so that anybody may have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final

from aiohttp import web

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_TYPES: Final = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


@cache
def _read(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


@cache
def _parts() -> frozenset[str]:
    """What pages are made of: all files but the pages themselves."""
    names = {entry.name for entry in resources.files(__name__).iterdir()}
    return frozenset(name for name in names if name.rpartition(".")[2] in _TYPES.keys() - {"html"})


def page_response(name: str, *, status: int = 200) -> web.Response:
    """Return a file of this package as an answer."""
    content_type = _TYPES[name.rpartition(".")[2]]
    return web.Response(text=_read(name), status=status, content_type=content_type, headers=HEADERS)


async def show_page(request: web.Request) -> web.Response:  # noqa: ARG001, the signature of a handler
    """``GET /`` of the public port: the playground."""
    return page_response("index.html")


async def show_live(request: web.Request) -> web.Response:  # noqa: ARG001, the signature of a handler
    """``GET /`` of the admin port: the live view."""
    return page_response("live.html")


async def show_part(request: web.Request) -> web.Response:
    """``GET /page/{name}``: a file that a page names."""
    name = request.match_info["name"]
    if name not in _parts():
        raise web.HTTPNotFound
    return page_response(name)
