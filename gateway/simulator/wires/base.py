"""What a wire is: one provider's JSON, its events and its errors, and nothing about sockets or time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from gateway.simulator.ask import Ask, Complaint, Incoming, Tool, Trailing, invalid
from gateway.simulator.frames import Frame
from gateway.simulator.scene import Scene
from gateway.simulator.schema import ANY_OBJECT
from gateway.simulator.script import Script
from gateway.simulator.text import digest

BUSY: Final = 429
UNAVAILABLE: Final = 503
OVERLOADED: Final = 529
FIRST_SERVER_ERROR: Final = 500

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Reply:
    """What is new with every answer, also to the same question: its id and the second it was made."""

    serial: str
    created_s: int
    model: str
    has_usage: bool = True

    def id(self, length: int, salt: str = "") -> str:
        """Return letters and digits for an id that this answer alone has."""
        return digest(self.serial, salt)[:length]


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A response that is not a stream."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class Wire(Protocol):
    """One provider's way to be asked and to answer."""

    @property
    def name(self) -> str:
        """How records call it."""

    def parse(self, incoming: Incoming, script: Script, /) -> Ask:
        """Read a request; raises `Rejected` with what the provider would not accept."""

    def stream(self, ask: Ask, scene: Scene, reply: Reply, /) -> Iterator[Frame]:
        """Yield the events of a streamed answer."""

    def whole(self, ask: Ask, scene: Scene, reply: Reply, /) -> bytes:
        """Return the body of an answer that was not asked for as a stream."""

    def http_error(self, complaint: Complaint, reply: Reply, /) -> HttpAnswer:
        """Return the provider's HTTP error."""

    def error_event(self, complaint: Complaint, ask: Ask, reply: Reply, /) -> bytes:
        """Return what the provider sends when it fails in the middle of a stream."""

    def ping(self, ask: Ask, reply: Reply, /) -> bytes:
        """Return what the provider sends while it has nothing to say."""

    def late_text(self, ask: Ask, reply: Reply, /) -> bytes:
        """Return a text event such as must not come after the finish."""

    def headers(self, reply: Reply, /) -> Mapping[str, str]:
        """Return the headers of every answer."""

    def content_type(self, ask: Ask, /) -> str:
        """Return the content type of a stream."""

    def models(self, names: Sequence[str], reply: Reply, /) -> Any:
        """Return the list of models as the provider shows it."""


def decided(trailing: Trailing, script: Script, rejection: Exception) -> Trailing:
    """Return what becomes of a trailing assistant turn once the script has had its say."""
    if script.prefill == "reject":
        raise rejection
    if script.prefill == "accept" and trailing == "new":
        trailing = "continue"
    if trailing == "new" or script.echo == "auto":
        return trailing
    return "echo" if script.echo == "on" else "continue"


def chosen_tool(tools: Sequence[Tool], name: Any) -> Tool:
    """Return the tool that a request insists on; raises `Rejected` when it offers none of that name."""
    for tool in tools:
        if tool.name == name:
            return tool
    raise invalid(f"Tool choice {name!r} not found in 'tools' parameter.", param="tool_choice")


def part_texts(content: Any, key: str = "text") -> str:
    """Return the text of content that is a string, a list of parts or nothing; other kinds of parts are passed over."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        part if isinstance(part, str) else str(part.get(key) or "") for part in content if isinstance(part, str | dict)
    )


def listed(value: Any) -> list[Any]:
    """Return a JSON value as a list: itself, or alone in one, or nothing."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def schema_of_format(response_format: Any) -> Any:
    """Return the JSON schema that an OpenAI-like `response_format` asks for; None when it asks for text."""
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "json_schema":
        holder = response_format.get("json_schema")
        return (holder or {}).get("schema") or (holder or {}).get("schema_definition") or ANY_OBJECT
    return ANY_OBJECT if kind == "json_object" else None


def interleaved(streams: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """Yield from several choices in turns, as a provider does that generates them side by side."""
    running = list(streams)
    while running:
        for one in list(running):
            try:
                yield next(one)
            except StopIteration:
                running.remove(one)
