"""The call: what is asked, by whom, of which target. Immutable; an attempt that differs is a new ``Call``.

A dialect reads the client's body into these types, a provider writes its own request from them: neither knows
the other. What they cannot express is not lost: ``Call.source`` keeps the client's own JSON and each message, part and
tool its own piece of it, and a provider that speaks the same wire takes them over as they are.

What is made for every request is a ``msgspec.Struct``: a copy of a call with one field changed
(``msgspec.structs.replace``) takes under 1 µs, that of a frozen dataclass took 9, and there are half a dozen of them
in a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from gateway.core.budget import Budgets
from gateway.core.continuation import Continuation
from gateway.core.ledger import Ledger, NoLedger
from gateway.core.trace import NO_TRACE, Trace
from gateway.core.transcript import Transcript

Json: TypeAlias = Mapping[str, Any]
"""A decoded JSON object."""

Role = Literal["system", "developer", "user", "assistant", "tool"]

OPENAI_CHAT = "openai.chat"
"""The wire of a request body in OpenAI's Chat Completions format."""


class Target(Struct, frozen=True):
    """One model of one configured provider."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where calls for one model may go, and what is to happen when a stream breaks.

    ``name`` is what metrics call the model: an alias or ``provider/model`` out of the configuration, else ``other``.
    """

    name: str = "other"
    targets: tuple[Target, ...] = ()
    strategy: Literal["priority", "weighted", "fastest"] = "priority"
    weights: tuple[float, ...] = ()
    on_interrupt: Literal["continue", "restart", "error"] = "continue"
    hedge_after_s: float | None = None


class TextPart(Struct, frozen=True):
    """Plain text."""

    text: str


class ImagePart(Struct, frozen=True):
    """An image by ``https`` URL or as a ``data:`` URI; the gateway never fetches it."""

    url: str
    detail: str | None = None


class AudioPart(Struct, frozen=True):
    """Base64 audio; ``format`` is ``wav`` or ``mp3``."""

    data: str
    format: str


class FilePart(Struct, frozen=True):
    """A document: as a ``data:`` URI, by URL or by the provider's own file id."""

    url: str | None = None
    file_id: str | None = None
    name: str | None = None


class UnknownPart(Struct, frozen=True):
    """A part that only the wire it came in understands."""

    type: str


Part: TypeAlias = TextPart | ImagePart | AudioPart | FilePart | UnknownPart


class ToolCall(Struct, frozen=True):
    """A call that the model made in an earlier turn; ``arguments`` is JSON text, or free text for a custom tool."""

    id: str
    name: str
    arguments: str
    is_custom: bool = False


class Message(Struct, frozen=True, kw_only=True):
    """One turn. ``source`` is the JSON it came as, ``None`` when the gateway wrote it."""

    role: Role
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str | None = None
    reasoning: str | None = None
    source: Json | None = None

    @property
    def text(self) -> str:
        """All text of the turn, concatenated."""
        parts = self.parts
        if len(parts) == 1:  # nearly always
            part = parts[0]
            return part.text if type(part) is TextPart else ""
        return "".join([part.text for part in parts if type(part) is TextPart])


class Tool(Struct, frozen=True, kw_only=True):
    """A function that the client offers; ``parameters`` is a JSON schema.

    ``is_custom`` tools are not functions: they take free text, or are a host's own, which only its wire can express.
    """

    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None
    is_custom: bool = False
    source: Json | None = None


class ToolChoice(Struct, frozen=True):
    """Which tools the model may or must call; ``names`` restricts ``auto`` and ``required`` to some of them."""

    mode: Literal["auto", "none", "required"]
    names: tuple[str, ...] = ()


class ResponseFormat(Struct, frozen=True, kw_only=True):
    """The form that the answer must have; an ``other`` one is known only to the wire it came in."""

    kind: Literal["text", "json_object", "json_schema", "other"]
    name: str = "answer"
    schema: Json | None = None
    strict: bool | None = None
    description: str | None = None


class Sampling(Struct, frozen=True, kw_only=True):
    """How the next token is chosen; ``None`` leaves it to the provider."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


class Source(Struct, frozen=True):
    """The client's own body, decoded, and the wire it is written in."""

    wire: str
    body: Json


class Flow(Protocol):
    """Back-pressure: whether the client's socket takes more, and a way to wait until it does."""

    @property
    def is_committed(self) -> bool:
        """Whether the answer has begun, if only with a sign of life, so that no status can tell of an error."""

    @property
    def is_paused(self) -> bool:
        """Whether reading from the provider should pause."""

    async def wait(self) -> None:
        """Return when the client's socket takes more; at once when it does now."""


class OpenFlow:
    """The flow of a consumer that always takes more."""

    is_committed = False
    is_paused = False

    async def wait(self) -> None:
        """Return at once."""


class Call(Struct, frozen=True, kw_only=True):
    """One request of a client, and the attempt that is being made for it.

    ``endpoint`` is the name of the path (a label of metrics), ``model`` what the client asked for, ``credential`` the
    key it showed and ``client_id`` who it turned out to be. ``headers`` are those that may go on to a provider.
    ``received_at_s`` is on the monotonic clock, ``created_unix_s`` is what a dialect dates its answer with.

    Of an attempt: ``attempt`` counts from 1 over all targets, ``other_targets`` is how many could be tried after this
    one. ``delivered`` is what the client has of the answer from targets before, ``continuation`` what this attempt is
    to make of it. ``is_fresh`` wants a connection that nobody used before. ``ledger`` is where the attempt is
    settled, ``budgets`` what another one is paid from; without any, none is counted. ``trace`` is told what happens.
    """

    request_id: str
    endpoint: str = "other"
    dialect: str = ""
    model: str = ""
    route: Route = Route()
    target: Target | None = None
    attempt: int = 1
    other_targets: int = 0
    delivered: Transcript | None = None
    continuation: Continuation | None = None
    is_fresh: bool = False
    credential: str | None = None
    client_id: str | None = None
    headers: Mapping[str, str] = {}
    received_at_s: float = 0.0
    created_unix_s: int = 0

    stream: bool = False
    include_usage: bool = False
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    reasoning_effort: str | None = None
    choice_count: int = 1
    logprobs: bool = False
    source: Source = Source("", {})
    flow: Flow = OpenFlow()
    ledger: Ledger = NoLedger()
    budgets: Budgets | None = None
    trace: Trace = NO_TRACE

    def __repr__(self) -> str:
        """Return what may be seen of a call by who finds it in a traceback: no key, and nothing that was said."""
        shown = ("request_id", "endpoint", "model", "target", "attempt", "continuation")
        return f"Call({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def target_model(self) -> str:
        """What the target calls the model; without a target, what the client does."""
        return self.target.model if self.target else self.model

    def system_text(self) -> str:
        """All system and developer turns as one text, for providers that take it apart from the conversation."""
        texts = [message.text for message in self.messages if message.role in ("system", "developer")]
        return "\n\n".join(text for text in texts if text)

    def conversation(self) -> Sequence[Message]:
        """Return the turns that are neither the system's nor the developer's."""
        return [message for message in self.messages if message.role not in ("system", "developer")]
