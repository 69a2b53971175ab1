import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Call
from gateway.core.events import TextDelta
from gateway.providers.openai_stream import OpenAIDecoder
from gateway.providers.openai_template import MAX_TRIES, TextTemplate


def make_chunk(text: str, **more: object) -> bytes:
    """Return a chunk with this text."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return msgspec.json.encode({"id": "c", "created": 1, "model": "m", "choices": [choice], **more})


def make_template(text: str = "first") -> TextTemplate:
    """Return a template that has learned a chunk with this text."""
    template = TextTemplate()
    template.learn(make_chunk(text), text, 0)
    return template


def test_a_template_that_has_learned_nothing_knows_no_chunk() -> None:
    """Whatever it is shown."""
    assert TextTemplate().text_of(make_chunk("a")) is None
    assert TextTemplate().text_of(b"") is None


@given(st.text(), st.text())
def test_a_chunk_that_differs_in_its_text_alone_gives_that_text(first: str, second: str) -> None:
    """Escapes, quotes and all."""
    assert make_template(first).text_of(make_chunk(second)) == second


@pytest.mark.parametrize(
    "other",
    [
        make_chunk("a", usage={"prompt_tokens": 1}),
        make_chunk("a").replace(b'"id":"c"', b'"id":"d"'),
        make_chunk("a").replace(b"null", b'"stop"'),
        make_chunk("a").replace(b'"content":"a"', b'"content":null'),
        make_chunk("a").replace(b'"content":"a"', b'"content":["a"]'),
        make_chunk("a").replace(b'"a"', b'"a","refusal":"no"'),
        make_chunk("a").replace(b'"a"', b'"a'),
        make_chunk("a").replace(b'"a"', b'"\xff"'),
        make_chunk("a")[:-1],
        b"",
    ],
)
def test_a_chunk_that_differs_elsewhere_is_not_known(other: bytes) -> None:
    """It has to be decoded in full."""
    assert make_template().text_of(other) is None


def test_a_head_and_a_tail_that_overlap_are_no_chunk() -> None:
    """The text must have its own quotes between them."""
    chunk = b'{"content":"content":"x"}'
    template = TextTemplate()
    template.learn(b'{"content":"x"}', "x", 0)
    assert template.text_of(chunk[:11] + b"}") is None


def test_a_text_that_is_written_twice_or_in_another_way_is_not_learned() -> None:
    """Where the text stands must be certain."""
    twice = TextTemplate()
    twice.learn(b'{"a":{"content":"x"},"content":"x"}', "x", 0)
    assert twice.text_of(b'{"a":{"content":"x"},"content":"x"}') is None
    escaped = TextTemplate()
    escaped.learn(b'{"content":"\\u00e9"}', "é", 0)
    assert escaped.text_of(b'{"content":"\\u00e9"}') is None


def test_a_stream_whose_chunks_all_differ_is_given_up() -> None:
    """After a few tries nothing more is learned."""
    template = TextTemplate()
    for number in range(MAX_TRIES):
        template.learn(make_chunk("x", padding=number), "x", 0)
    template.learn(make_chunk("x"), "x", 0)
    assert template.text_of(make_chunk("y")) is None


@given(st.text(), st.text())
def test_a_chunk_is_made_again_of_its_text_as_it_was_written(first: str, second: str) -> None:
    """Byte for byte."""
    template = make_template(first)
    assert template.before + msgspec.json.encode(second) + template.behind == make_chunk(second)


@given(st.lists(st.text(min_size=1), min_size=1), st.sampled_from([{}, {"padding": "a"}, {"usage": None}]))
def test_a_decoder_reads_every_text_with_its_frame(texts: list[str], more: dict[str, object]) -> None:
    """With a template or without, and the frame is the very chunk."""
    chunks = [make_chunk(text, **more) for text in texts]
    decoder = OpenAIDecoder(Call(request_id="r", stream=True))
    events = [event for chunk in chunks for event in decoder.feed(b"data: " + chunk + b"\n\n")]
    found = [event for event in events if isinstance(event, TextDelta)]
    assert [event.text for event in found] == texts
    assert [event.frame.data for event in found[1:] if event.frame] == chunks[1:]
