from __future__ import annotations

import pytest

from gateway.providers.google_template import learn

DOCUMENT = b'{"candidates": [{"content": {"parts": [{"text": "a"}]}}],"usageMetadata": {"n": 1},"responseId": "r"}'


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n"])
def test_an_event_is_taken_apart_around_its_text_and_its_usage(end: bytes) -> None:
    """And can be put together with others."""
    event = b"data: " + DOCUMENT + end
    template = learn(event, DOCUMENT, "a")
    assert template is not None
    assert event[template.document] == DOCUMENT
    assert event[template.inside] == b'"a"' + template.between + b'{"n": 1}'
    assert event.startswith(template.head)
    assert event.endswith(template.tail)
    assert template.event_with(b'"a"', b'{"n": 1}') == event
    other = template.event_with(b'"other"', b"{}")
    assert other == event.replace(b'"a"', b'"other"').replace(b'{"n": 1}', b"{}")
    assert other[template.inside] == b'"other"' + template.between + b"{}"


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n"])
def test_several_events_are_taken_apart_by_what_lies_between_two(end: bytes) -> None:
    """Into what is inside of each, and into their documents."""
    template = learn(b"data: " + DOCUMENT + end, DOCUMENT, "a")
    assert template is not None
    events = [template.event_with(b'"%d"' % number, b"{}") for number in range(3)]
    together = b"".join(events)
    assert together[template.inside].split(template.event_between) == [event[template.inside] for event in events]
    assert together[template.document].split(template.document_between) == [
        event[template.document] for event in events
    ]


@pytest.mark.parametrize(
    ("event", "document", "text"),
    [
        (b"data: " + DOCUMENT + b"\n\n", DOCUMENT, "b"),
        (b"data:" + DOCUMENT + b"\n\n", DOCUMENT, "a"),
        (b"data: " + DOCUMENT + b"\r\r", DOCUMENT, "a"),
        (b"data: " + DOCUMENT + b"\n\ndata: {}\n\n", DOCUMENT, "a"),
        (b": comment\n\ndata: " + DOCUMENT + b"\n\n", DOCUMENT, "a"),
        (b'data: {"text": "a"}\n\n', b'{"text": "a"}', "a"),
        (b'data: {"usageMetadata": {},"text": "a"}\n\n', b'{"usageMetadata": {},"text": "a"}', "a"),
        (b"data: {\n}\n\n", b"{\n}", "a"),
        (b'data: "a"\n\n', b'"a"', "a"),
    ],
)
def test_what_cannot_be_taken_apart_is_no_template(event: bytes, document: bytes, text: str) -> None:
    """Not alone in its read, written in another way, or without one of the two."""
    assert learn(event, document, text) is None
