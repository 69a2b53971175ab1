"""A slow network between a browser and the gateway, for browsers that cannot make one themselves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

PIECE_BYTES = 4096


@asynccontextmanager
async def slow_link(url: str, *, bytes_per_s: int, delay_s: float) -> AsyncIterator[str]:
    """Yield the address of a relay to ``url``: every byte is ``delay_s`` late, and no more pass than the line takes."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    ways: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        for source, sink in ((reader, back), (there, writer)):
            way = asyncio.create_task(_carry(source, sink, bytes_per_s, delay_s))
            ways.add(way)
            way.add_done_callback(ways.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for way in list(ways):
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, bytes_per_s: int, delay_s: float) -> None:
    """Carry one way of a connection, and its end; what is on its way is as much as the line holds."""
    loop = asyncio.get_running_loop()
    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    free_at_s = 0.0

    async def deliver() -> None:
        while True:
            due_at_s, piece = await line.get()
            await asyncio.sleep(due_at_s - loop.time())
            if not piece:
                return
            sink.write(piece)
            await sink.drain()

    delivering = asyncio.create_task(deliver())
    try:
        with suppress(ConnectionError):
            while piece := await source.read(PIECE_BYTES):
                free_at_s = max(free_at_s, loop.time()) + len(piece) / bytes_per_s
                line.put_nowait((free_at_s + delay_s, piece))
                await asyncio.sleep(free_at_s - loop.time())
            line.put_nowait((loop.time() + delay_s, b""))
            await delivering
    finally:
        delivering.cancel()
        sink.close()
