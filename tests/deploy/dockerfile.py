"""Reads a Dockerfile, and knows what a good one does not do."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_KNOWN: Final = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)
_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_BUILD_TOOLS: Final = re.compile(r"\b(gcc|g\+\+|make|build-essential|cargo|rustc|clang|python3?-dev)\b")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its lines joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """What a shell would make of the value; of the JSON form its items."""
        listed = re.search(r"\[.*\]$", self.value)
        return [str(word) for word in json.loads(listed[0])] if listed else shlex.split(self.value)

    @property
    def is_exec_form(self) -> bool:
        """Whether no shell stands in between, which would keep signals to itself."""
        return self.value.endswith("]")


@dataclass(slots=True)
class Stage:
    """What comes after a FROM."""

    base: str
    name: str = ""
    instructions: list[Instruction] = field(default_factory=list)

    def all_of(self, name: str) -> list[Instruction]:
        """Return the instructions of a name."""
        return [item for item in self.instructions if item.name == name]

    def last_of(self, name: str) -> Instruction:
        """Return the last instruction of a name, the one that counts."""
        return self.all_of(name)[-1]

    @property
    def env(self) -> dict[str, str]:
        """All variables that are set."""
        pairs = [word.partition("=") for item in self.all_of("ENV") for word in item.words]
        return {name: value for name, _, value in pairs}


def stages(text: str) -> list[Stage]:
    """Return the stages, with the build arguments before the first of them filled in."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            words = [_filled(word, arguments) for word in instruction.words]
            found.append(Stage(words[0], words[2] if len(words) == 3 else ""))
        elif found:
            found[-1].instructions.append(instruction)
        else:
            name, _, value = instruction.value.partition("=")
            arguments[name] = value
    return found


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, value = line.strip().partition(" ")
            yield Instruction(name.upper(), value.strip())


def _filled(word: str, arguments: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: arguments.get(found[1], ""), word)


def faults(text: str) -> list[str]:
    """Return what is wrong with a Dockerfile, a sentence each."""
    found = stages(text)
    return [
        *_faults_of_bases(found),
        *(fault for stage in found for item in stage.instructions for fault in _faults_of(item, found)),
        *_faults_of_final(found),
    ]


def _faults_of_bases(found: Sequence[Stage]) -> Iterator[str]:
    if len(found) < 2:
        yield "there is only one stage, so that all that builds is shipped"
    for stage in found:
        if not re.search(r":[^:]*\d|@sha256:", stage.base) or stage.base.endswith(":latest"):
            yield f"the base {stage.base} is not pinned"


def _faults_of(item: Instruction, found: Sequence[Stage]) -> Iterator[str]:
    if not _KNOWN.fullmatch(item.name):
        yield f"{item.name} is no instruction"
    if item.name == "ADD":
        yield "ADD does more than one sees; COPY does not"
    if item.name in ("ENV", "ARG") and _SECRET.search(item.value):
        yield f"{item.name} {item.value}: a secret would stay in the image"
    if item.name in ("CMD", "ENTRYPOINT") and not item.is_exec_form:
        yield f"{item.name} runs a shell, which keeps signals to itself"
    source = re.search(r"--from=(\S+)", item.value) if item.name == "COPY" else None
    if source and source[1] not in {stage.name for stage in found}:
        yield f"COPY from {source[1]}: there is no such stage"
    if item.name == "RUN":
        yield from _faults_of_run(item.value)


def _faults_of_run(command: str) -> Iterator[str]:
    if "apt-get install" in command:
        if "--no-install-recommends" not in command:
            yield "apt-get install takes recommended packages, too"
        if "rm -rf /var/lib/apt/lists" not in command:
            yield "apt-get install leaves its lists behind"
    if re.search(r"\b(sudo|apt|curl|wget)\s", command):
        yield f"RUN {command}: not in an image that is to come out the same again"
    for part in re.split(r"&&|;", command):
        if "pip" in part and "install" in part and not re.search(r"--require-hashes|--no-index", part):
            yield f"RUN {part.strip()}: what is installed is not checked against hashes"


def _faults_of_final(found: Sequence[Stage]) -> Iterator[str]:
    final = found[-1]
    for name in ("USER", "HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL"):
        if not final.all_of(name):
            yield f"the image has no {name}"
            return
    user = final.last_of("USER").value
    if not re.fullmatch(r"[1-9]\d{3,}(:[1-9]\d{3,})?", user):
        yield f"USER {user}: not the number of somebody who is neither root nor of the system"
    if not any("--from=" in item.value for item in final.all_of("COPY")):
        yield "the image takes nothing from the stage that builds"
    if final.all_of("RUN") and any(_BUILD_TOOLS.search(item.value) for item in final.all_of("RUN")):
        yield "the image has tools to build with"
    if final.last_of("STOPSIGNAL").value != "SIGTERM":
        yield "the image is not stopped by SIGTERM, which drains"
