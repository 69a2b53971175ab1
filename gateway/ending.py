"""How an attempt at a provider ends: what that is called, and what becomes of the connection.

Whatever aiohttp, a socket or a clock has to say is translated here into the errors of our own tree. An answer is let go
of in one of three ways: given back at its end, waited for if only its last bytes are missing, cut otherwise.
"""

from __future__ import annotations

import asyncio
import ssl

import aiohttp

from gateway.core.delivery import AnswerComplete
from gateway.core.errors import (
    ClientGone,
    StreamInterrupted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
    without_frames,
)
from gateway.core.ledger import Result
from gateway.exchange import Answer
from gateway.providers.errors import malformed
from gateway.watch import Limit, Limits

DRAIN_TIMEOUT_S = 1.0
DRAIN_BYTES = 16 * 1024
"""How long, and for how much, the end of a whole answer is waited for."""


def translated(error: Exception) -> UpstreamError | None:
    """Turn what aiohttp and the system raise into our own error; nothing of their words is kept.

    There is none for a limit that has run out: that is the watch's.
    """
    match error:
        case aiohttp.ClientConnectorDNSError():
            return UpstreamUnreachable("the provider's host name was not found", error_type="dns")
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return UpstreamUnreachable("no secure connection to the provider could be made", error_type="tls")
        case aiohttp.ClientConnectorError():
            return UpstreamUnreachable("no connection to the provider could be made")
        case aiohttp.ServerTimeoutError():
            message = "no connection to the provider could be made in time"
            return UpstreamTimeout(message, code="connect_timeout", error_type="connect")
        case aiohttp.InvalidURL():
            return UpstreamUnreachable("the provider's address is not a URL", retryable=False)
        case aiohttp.ClientPayloadError() | aiohttp.ClientResponseError():
            return malformed("an answer that is not valid HTTP, or broke off")
        case TimeoutError():
            return None
        case _:
            return UpstreamUnreachable("the provider closed the connection", error_type="reset")


def late(limit: Limit, limits: Limits, *, has_begun: bool) -> UpstreamError:
    """Return the error for the limit that has run out, before or behind what was first sent of an answer."""
    code = f"{limit}_timeout"
    if limit == "ttft":
        message = f"the provider sent no token within {limits.ttft_timeout_s:g} s"
    elif limit == "stall":
        message = f"the provider sent no further token for {limits.stall_timeout_s:g} s"
    else:
        message = f"the answer was not complete after {limits.total_timeout_s:g} s"
    retryable = limit != "total"  # there is no time left for another attempt
    if has_begun:
        return StreamInterrupted(message, code=code, status_code=504, error_type="read_timeout", retryable=retryable)
    return UpstreamTimeout(message, code=code, retryable=retryable)


def result_of(failure: BaseException | None) -> tuple[Result, str]:
    """Return how an attempt ended, and the word for what cancelled it."""
    match failure:
        case None:
            return "completed", ""
        case asyncio.CancelledError(args=(str(word),)):
            return "cancelled", word
        case ClientGone() | asyncio.CancelledError():
            return "cancelled", "client_gone"
        case AnswerComplete():
            return "cancelled", "enough"
        case _:
            return "failed", ""


def let_go(answer: Answer, *, is_whole: bool) -> None:
    """Give the connection back if nothing more will come on it, cut it otherwise.

    Closing would be too polite: with TLS a close waits for the other side, which goes on generating and billing.
    """
    if answer.is_at_end:
        answer.release()
    elif is_whole:
        draining = asyncio.ensure_future(_drain(answer))
        _DRAINING.add(draining)
        draining.add_done_callback(_DRAINING.discard)
    else:
        answer.abort()


_DRAINING: set[asyncio.Future[None]] = set()
"""The loop holds tasks weakly; somebody has to hold these."""


async def _drain(answer: Answer) -> None:
    """Wait for the last bytes behind a complete answer, so that the connection can serve another."""
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await answer.read(DRAIN_BYTES)
    except (aiohttp.ClientError, OSError) as error:
        without_frames(error)  # the answer keeps it, and its frames keep the answer
    finally:
        if answer.is_at_end:
            answer.release()
        else:
            answer.abort()
