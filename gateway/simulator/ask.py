"""What is asked of the simulator, in no provider's words.

Each wire reads its own JSON into an `Ask` or raises `Rejected` with a `Complaint`, which the same wire then writes
as its provider's HTTP error. Only the JSON border of the wires knows field names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Trailing = Literal["new", "continue", "echo"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """One HTTP request: its path and headers as they came, its model without the script."""

    path: str
    model: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    is_stream_path: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the conversation; `calls` are the names of the tools an assistant turn calls."""

    role: Role
    text: str
    reasoning: str = ""
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called."""

    name: str
    parameters: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a provider's own continuation token says that the answer goes on."""

    char_count: int
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, read.

    `trailing` says what this wire makes of a last turn that is the assistant's, and `rethinks` whether it reasons
    anew then. The last four are Gemini's: where its token says to go on, how often it gives one and after how many
    tokens it ends a hop, and whether the stream is a JSON array.
    """

    model: str
    turns: tuple[Turn, ...]
    is_stream: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | Tool = "auto"
    is_parallel: bool = True
    answer_schema: Any = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choice_count: int = 1
    top_logprobs: int | None = None
    wants_reasoning: bool = False
    wants_usage: bool = True
    trailing: Trailing = "new"
    rethinks: bool = False
    checkpoint: Checkpoint | None = None
    checkpoint_every: int = 0
    hop_after: int | None = None
    is_array: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """What is wrong, for a wire to say in its provider's words. Empty fields are filled in by the wire."""

    status: int
    code: str = ""
    message: str = ""
    param: str | None = None
    retry_after_s: float | None = None


class Rejected(Exception):
    """The provider would answer this request with an HTTP error."""

    def __init__(self, complaint: Complaint) -> None:
        super().__init__(complaint.message)
        self.complaint = complaint


def invalid(message: str, *, param: str | None = None, code: str = "", status: int = 400) -> Rejected:
    """Return the rejection of a request that is not well formed."""
    return Rejected(Complaint(status=status, message=message, param=param, code=code))
