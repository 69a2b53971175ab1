from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from gateway.admin_gate import AdminGate
from gateway.schema import Secret
from tests.raw_client import exchange, request

KEY = "an admin's kéy"
Serve = Callable[[Secret | None], Awaitable[str]]


async def answer(request: web.Request) -> web.Response:
    """Answer anybody who gets so far."""
    return web.Response(text=f"seen: {request.path}")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve behind a gate."""
    async with AsyncExitStack() as running:

        async def start(key: Secret | None) -> str:
            app = web.Application(middlewares=[AdminGate(key).handle])
            for name in ("healthz", "readyz", "metrics"):
                app.router.add_get(f"/{name}", answer, name=name)
            app.router.add_get("/page/{name}", answer, name="page.part")
            app.router.add_get("/", answer, name="page")
            app.router.add_get("/admin/streams", answer)
            app.router.add_post("/admin/reload", answer)
            runner = web.AppRunner(app, access_log=None)
            running.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return f"http://127.0.0.1:{runner.addresses[0][1]}"

        yield start


async def status(url: str, path: str, *, method: str = "GET", **headers: str) -> int:
    """Return how something is answered."""
    return (await exchange(url, request(path, method=method, **headers))).status


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.9", None])
@pytest.mark.parametrize("key", [None, Secret(KEY)])
async def test_what_machines_ask_is_open_to_all(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, key: Secret | None, peer: str | None
) -> None:
    """Also under foreign names: a probe and Prometheus come as they like."""
    monkeypatch.setattr(web.BaseRequest, "remote", peer)
    url = await serve(key)
    for path in ("/healthz", "/readyz", "/metrics", "/metrics?x=1", "/page/live.css"):
        assert await status(url, path, host="gateway.example", origin="https://evil.example") == 200


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("127.0.0.1", 200),
        ("127.8.8.8", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.0.0.9", 403),
        ("::ffff:10.0.0.9", 403),
        ("fe80::1%eth0", 403),
        ("", 403),
        (None, 403),
    ],
)
async def test_without_a_key_only_this_machine_may_look(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, peer: str | None, expected: int
) -> None:
    """Whoever else asks is told why not; what there is not is not told either."""
    url = await serve(None)
    monkeypatch.setattr(web.BaseRequest, "remote", peer)
    for path, method in (("/", "GET"), ("/admin/streams", "GET"), ("/admin/reload", "POST")):
        found = await exchange(url, request(path, method=method))
        assert found.status == expected
        assert expected == 200 or "server.admin_key" in found.error["message"]
    assert await status(url, "/no/such") == (404 if expected == 200 else 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost", "origin": "https://evil.example"},
        {"host": "localhost", "origin": "null"},
    ],
)
async def test_a_web_page_from_elsewhere_learns_nothing(serve: Serve, headers: dict[str, str]) -> None:
    """Neither under a name that its owner has pointed here, nor from another origin."""
    url = await serve(None)
    for path, method in (("/", "GET"), ("/admin/streams", "GET"), ("/admin/reload", "POST")):
        assert await status(url, path, method=method, **headers) == 403
    assert await status(url, "/admin/streams", host="localhost:81", origin="http://localhost:81") == 200


@pytest.mark.parametrize("path", ["/admin/streams", "/no/such"])
async def test_with_a_key_everybody_needs_it(serve: Serve, path: str) -> None:
    """This machine too; under any name then, as whoever knows the key is no stranger."""
    url = await serve(Secret(KEY))
    sent = KEY.encode().decode("latin-1")
    for headers in ({}, {"x_api_key": "wrong"}, {"authorization": "Bearer "}, {"authorization": f"Basic {sent}"}):
        found = await exchange(url, request(path, method="GET", **headers))
        assert found.status == 401
        assert found.headers["www-authenticate"] == "Bearer"
        assert "admin key" in found.error["message"]
    known = 404 if path == "/no/such" else 200
    assert await status(url, path, authorization=f"Bearer {sent}", host="gateway.example") == known
    assert await status(url, path, x_api_key=sent, origin="https://ops.example") == known


async def test_who_has_shown_no_key_gets_the_page_to_show_it_on(serve: Serve) -> None:
    """It holds nothing of what the gateway is at."""
    url = await serve(Secret(KEY))
    found = await exchange(url, request("/", method="GET"))
    assert found.status == 401
    assert b'id="login"' in found.body
    assert "content-security-policy" in found.headers
    assert await status(url, "/", x_api_key=KEY.encode().decode("latin-1")) == 200
