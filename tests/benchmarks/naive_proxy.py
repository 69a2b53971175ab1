"""What a proxy on aiohttp costs before it does anything of use: reads, writes, and knows nothing of streams.

``python -m tests.benchmarks.naive_proxy PORT UPSTREAM_PORT``
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web


async def serve(port: int, upstream_port: int) -> None:
    """Pass every request on to the upstream, and its answer back, one read and one write at a time."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def handle(request: web.Request) -> web.StreamResponse:
        url = f"http://127.0.0.1:{upstream_port}{request.path_qs}"
        headers = {"content-type": request.content_type}
        async with session.request(request.method, url, data=await request.read(), headers=headers) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"content-type": answer.headers["content-type"]}
            )
            response.content_length = answer.content_length
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            return response

    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(*map(int, sys.argv[1:])))
