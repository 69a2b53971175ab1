"""How the gateway's own log lines are written: structlog, one JSON object a line, or coloured for a person.

The lines go to standard output without the standard library in between, which would cost twice as much a line.
"""

from __future__ import annotations

import logging
import sys

import msgspec
import structlog


def configure_logs(*, level: str, log_format: str) -> None:
    """Set up structlog for the process; ``level`` and ``log_format`` as the configuration has them."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    factory: structlog.BytesLoggerFactory | structlog.PrintLoggerFactory
    if log_format == "console":
        shared.append(structlog.dev.ConsoleRenderer())
        factory = structlog.PrintLoggerFactory(sys.stdout)
    else:
        shared += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
        factory = structlog.BytesLoggerFactory(sys.stdout.buffer)
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def _to_json(fields: object, default: object = None, **_: object) -> bytes:
    return msgspec.json.encode(fields, enc_hook=default if callable(default) else str)
