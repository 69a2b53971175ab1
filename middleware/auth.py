"""Who may call: client keys, known by their SHA-256.

The configuration holds hashes, never keys: what it leaks opens nothing, and a hash shown as a key is refused. A key is
256 random bits, so that one round of SHA-256 is enough; hashes are compared in constant time, all of them, so that the
time taken says nothing about which key came close.

A call is asked for its key twice: before a byte of its body is read, and in the chain. What the first time has found
out is remembered for the second, for the one call that was asked last: mostly nothing comes in between.

Without keys no caller is asked for one, and the gateway serves only its own machine (``requires_key``).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Annotated

from msgspec.structs import replace

from gateway.core.call import Call
from gateway.core.errors import Unauthorized
from gateway.pipeline import Next, Send
from gateway.schema import Pattern

MAX_KEY_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Key:
    """One client: a name for the logs, and the SHA-256 of its key in lower-case hex."""

    id: Annotated[str, Pattern(r"[A-Za-z0-9._-]{1,64}", "up to 64 letters, digits, dots, dashes", shown=True)]
    sha256: Annotated[str, Pattern(r"[0-9a-f]{64}", "64 lower-case hex digits")] = field(repr=False)


class _LastShown:
    """A good key as it was shown last, with its client; forgotten when it is asked for."""

    __slots__ = ("_client_id", "_credential")

    def __init__(self) -> None:
        self._credential: str | None = None
        self._client_id: str | None = None

    def keep(self, credential: str, client_id: str) -> None:
        """Remember a key."""
        self._credential, self._client_id = credential, client_id

    def take(self, credential: str | None) -> str | None:
        """Return the client if this is the very key: the same object, since to compare would tell by its time."""
        client_id = self._client_id if credential is self._credential else None
        self._credential = self._client_id = None
        return client_id


@dataclass(frozen=True, slots=True)
class Auth:
    """Refuses calls without a configured key; raises ``Unauthorized``."""

    keys: tuple[Key, ...] = ()
    _last: _LastShown = field(default_factory=_LastShown, init=False, repr=False, compare=False)

    @property
    def requires_key(self) -> bool:
        """Whether every call must show a key."""
        return bool(self.keys)

    def authenticate(self, credential: str | None) -> str | None:
        """Return the client's id, ``None`` where no key is needed; raises ``Unauthorized``."""
        if not self.keys:
            return None
        if not credential:
            expected = "Authorization: Bearer …, x-api-key or x-goog-api-key"
            raise Unauthorized(f"no client key was sent; expected one as {expected}", code="missing_api_key")
        shown = hashlib.sha256(credential[:MAX_KEY_CHARACTERS].encode("utf-8", "replace")).hexdigest()
        client_id: str | None = None
        for key in self.keys:  # all of them, whichever it is
            if hmac.compare_digest(key.sha256, shown):
                client_id = client_id or key.id
        if client_id is None or len(credential) > MAX_KEY_CHARACTERS:
            raise Unauthorized("the client key is not known here")
        self._last.keep(credential, client_id)
        return client_id

    def __call__(self, call: Call, send: Send, call_next: Next) -> Awaitable[None]:
        """Hand on a call whose key is known, under its client's id."""
        client_id = self._last.take(call.credential) or self.authenticate(call.credential)
        return call_next(replace(call, client_id=client_id, credential=None), send)
