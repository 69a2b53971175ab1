"""The page that a browser sees: plain HTML and one module, no build step, nothing from elsewhere."""

from __future__ import annotations

from importlib import resources

from aiohttp import web

_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
}


def _read(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


async def show_page(request: web.Request) -> web.Response:
    """``GET /`` and the files that the page names."""
    name = request.match_info.get("name", "index.html")
    if name not in _FILES:
        raise web.HTTPNotFound
    headers = {"content-security-policy": _CONTENT_SECURITY_POLICY, "x-content-type-options": "nosniff"}
    return web.Response(text=_read(name), content_type=_FILES[name], headers=headers)
