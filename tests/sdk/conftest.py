"""What tests of more than one client share: OpenAI's own client of a gateway."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from tests.conftest import Running

MakeClient = Callable[[Running], AsyncOpenAI]


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    """Make clients of a gateway; all are closed after the test."""
    async with AsyncExitStack() as opened:

        def make(running: Running) -> AsyncOpenAI:
            http_client = DefaultAsyncHttpxClient(verify=False)  # it would read the certificates for every client
            client = AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", http_client=http_client)
            opened.push_async_callback(client.close)
            return client

        yield make
