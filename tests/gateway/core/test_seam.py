from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.core.errors import StreamInterrupted
from gateway.core.seam import (
    ANCHOR_CHARACTERS,
    LEAST_ANCHOR_CHARACTERS,
    MAX_ANCHOR_CHARACTERS,
    MAX_PREAMBLE_CHARACTERS,
    SEAM_NOT_FOUND,
    AnchorTrim,
    EchoTrim,
    ReplayTrim,
    SpaceTrim,
    StopTrim,
    Trim,
    choose_anchor,
    seam_not_found,
)

PROSE = (
    "The weir above the mill holds the river back, and the headrace leads it, slow and deep, to the wheel.\n\n"
    "“Nobody hurries water,” the miller said; he'd say it twice a day.  He opened the sluice by a hand's breadth. "
    "Then the wheel turned: first with a groan, then without a sound — and the stones began to sing.\n\n"
    "1. Open the sluice.\n2. Wait for the wheel.\n3. Pour the grain, a little at a time.\n\n"
    "What is left over runs back into the river, as if nothing had been."
)
CODE = (
    "```python\ndef grind(sacks: list[Sack]) -> Flour:\n    total = Flour()\n    for sack in sacks:\n"
    "        if sack.is_wet:\n            raise ValueError(sack)\n        total += sack.ground()\n\n"
    "    for sack in sacks:\n        if sack.is_wet:\n            raise ValueError(sack)\n        sack.empty()\n"
    "    return total\n```\n\n    for sack in sacks:\n        print(sack)\n"
)
TABLE = "| name | state |\n| ---- | ----- |\n" + "".join(
    f"| wheel {number} | {'turning' if number % 2 else 'standing still'} |\n" for number in range(12)
)
GRAPHEMES = (
    "Mühle 👩‍👩‍👧‍👦 🇩🇪🇫🇷🇮🇹 e\u0301a\u0300 👍🏽 한글 각 水車 नमस्ते 1\ufe0f\u20e3 ❤️ fin.\n"
    "川の水は水車を回し、石は穀物を挽く。🇩🇪🇩🇪🇫🇷 शुभ रात्रि 👨🏿‍🌾🌾🌾 Wasserra\u0308der "
    "🏴\U000e0067\U000e0062\U000e007f ماء الطاحونة \u200bend 2\ufe0f\u20e3."
)
REFRAIN = "Round and round the water goes, and the stones sing,\n" * 3 + "until the evening.\n" * 4

WORDS = st.sampled_from(
    ["the", "mill", "wheel", "a", "water", "turns", "and", "river", "Sluice", "stones,", "grain.", "42", "—", "“so”"]
)
LINES = st.sampled_from(
    [
        "    return None",
        "    if sack is None:",
        "        raise ValueError('the sack is empty')",
        "}",
        "",
        "else:",
        "for sack in sacks: total += sack.weight_kg",
        "| --- | --- |",
        "| wheel | turning, as it has for a hundred years |",
        "- one thing",
        "- another thing that is said at somewhat greater length",
        "# The mill",
        "```",
        "Then open the sluice:",
    ]
)
SIGNS = st.sampled_from([*"ab .-\n👍🏽🇩🇪é漢", "e\u0301", "\u200d", "👩‍👧", "\ufe0f", "\u0308", "각", "🇫🇷"])
SPACES = st.sampled_from(["a", "foo", "x1", " ", "  ", "\n", "\n\n", "\t", " " * 25, "\u00a0", "\r\n"])
TEXTS = st.one_of(
    st.lists(WORDS, max_size=80).map(" ".join),
    st.lists(LINES, max_size=24).map("\n".join),
    st.lists(SIGNS, max_size=80).map("".join),
    st.lists(SPACES, max_size=60).map("".join),
    st.builds(lambda unit, count, end: unit * count + end, st.text("ab \n", min_size=1), st.integers(1, 40), st.text()),
    st.builds(
        lambda unit, count, end: "\n".join(unit * count + end),
        st.lists(LINES, min_size=1, max_size=4),
        st.integers(1, 8),
        st.lists(LINES, max_size=4),
    ),
    st.text(max_size=60),
)
SIZES = st.lists(st.integers(1, 30), max_size=8)
COUNTS = st.sampled_from([20, ANCHOR_CHARACTERS, 64, 200])
PLACES = st.floats(0, 1)


def cut_at(text: str, place: float) -> tuple[str, str]:
    """Return the two parts of a text that is cut at a share of its length."""
    at = round(place * len(text))
    return text[:at], text[at:]


def pieces_of(text: str, sizes: Sequence[int]) -> Iterator[str]:
    """Cut a text into pieces of these sizes, over and over; without sizes it is one piece."""
    at = 0
    for size in cycle(sizes or [max(1, len(text))]):
        if at >= len(text):
            return
        yield text[at : at + size]
        at += size


def taken(trim: Trim, pieces: Iterable[str]) -> str | None:
    """Return what a trim lets through of a whole answer; ``None`` where it raises that the seam was not found."""
    try:
        return "".join([trim.take(piece) for piece in pieces]) + trim.finish()
    except StreamInterrupted as error:
        if error.code == SEAM_NOT_FOUND:
            return None
        raise


def joined(delivered: str, anchor: str, answer: str, sizes: Sequence[int] = ()) -> str | None:
    """Return what the client has in the end where a model answers so; ``None`` where the attempt fails."""
    new = taken(AnchorTrim(delivered, anchor), pieces_of(answer, sizes))
    return None if new is None else delivered + new


def shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def repeats_itself(text: str) -> bool:
    """Return whether a text is said by its first half or less, over and over."""
    size = len(text)
    return any(text == (text[:length] * size)[:size] for length in range(1, size // 2 + 1))


def comes_again(delivered: str, anchor: str, rest: str) -> bool:
    """Return whether the anchor, or the beginning of the text, stands in the rest at no great distance."""
    ahead = rest[: len(anchor) + MAX_PREAMBLE_CHARACTERS]
    return anchor in ahead or delivered.lstrip()[:ANCHOR_CHARACTERS] in ahead


# --- the error


def test_error_says_that_the_seam_was_not_found() -> None:
    """The attempt has failed by what the provider said, and the same again would not help."""
    error = seam_not_found()
    assert (error.code, error.error_type, error.retryable) == ("seam_not_found", "protocol", False)


# --- EchoTrim


@pytest.mark.parametrize("expected", [True, False])
def test_echo_is_dropped(expected: bool) -> None:  # noqa: FBT001, a parameter of the test
    """A provider that repeats the partial answer first is heard from behind it."""
    echo = PROSE[:60]
    assert taken(EchoTrim(echo, expected=expected), [echo[:50], echo[50:] + " and", " so on"]) == " and so on"
    assert taken(EchoTrim(echo, expected=expected), [echo]) == ""


def test_answer_without_the_echo_is_whole() -> None:
    """Of a provider that was expected to repeat and does not, no letter is lost."""
    assert taken(EchoTrim("The mill", expected=True), ["T", "hen ", "it turns."]) == "Then it turns."
    assert taken(EchoTrim("The mill", expected=True), []) == ""
    assert taken(EchoTrim("", expected=True), ["all"]) == "all"


def test_echo_that_changes_its_mind_is_an_error() -> None:
    """The answer from its start, in other words, is not the rest of it."""
    assert taken(EchoTrim(PROSE, expected=True), [PROSE[:30] + "!"]) is None
    assert taken(EchoTrim(PROSE, expected=False), [PROSE[:60] + "!"]) is None


def test_echo_that_breaks_off_is_an_error() -> None:
    """An answer that ends within the echo has no rest; a few letters of it may be new where none was expected."""
    assert taken(EchoTrim(PROSE, expected=True), ["Th"]) is None
    assert taken(EchoTrim(PROSE, expected=False), [PROSE[:60]]) is None
    assert taken(EchoTrim(PROSE, expected=False), ["The weir"]) == "The weir"


def test_refrain_is_no_echo_where_none_is_expected() -> None:
    """A text that says one thing over and over may well go on as it began."""
    assert taken(EchoTrim("la " * 30, expected=False), ["la " * 30, "end"]) == "la " * 30 + "end"
    assert taken(EchoTrim("la " * 30, expected=False), ["la " * 20]) == "la " * 20
    assert taken(EchoTrim("la " * 30, expected=True), ["la " * 30, "end"]) == "end"


@settings(max_examples=200)
@given(TEXTS, TEXTS, SIZES)
def test_expected_echo_leaves_the_rest(delivered: str, rest: str, sizes: list[int]) -> None:
    """Echo and rest give the rest; a rest alone gives the rest, or fails where it begins like an echo."""
    new = taken(EchoTrim(delivered, expected=True), pieces_of(delivered + rest, sizes))
    assert new == rest
    if not rest.startswith(delivered):
        same = shared(delivered, rest)
        new = taken(EchoTrim(delivered, expected=True), pieces_of(rest, sizes))
        assert new == (None if same >= ANCHOR_CHARACTERS // 2 or (rest and same == len(rest)) else rest)


@settings(max_examples=200)
@given(TEXTS, PLACES, TEXTS, SIZES)
def test_unexpected_echo_is_dropped_only_where_it_is_telling(
    delivered: str, place: float, other: str, sizes: list[int]
) -> None:
    """Long, whole and without a refrain: all else goes on unchanged, or fails where it is long and not whole."""
    answer = cut_at(delivered, place)[0] + other
    same = shared(delivered, answer)
    expected: str | None = answer
    if same >= ANCHOR_CHARACTERS and not repeats_itself(delivered[:same]):
        expected = answer[same:] if same == len(delivered) else None
    assert taken(EchoTrim(delivered, expected=False), pieces_of(answer, sizes)) == expected


# --- SpaceTrim


@settings(max_examples=150)
@given(st.text(" \n\t", max_size=6), TEXTS, SIZES)
def test_space_is_not_doubled_and_not_lost(space: str, rest: str, sizes: list[int]) -> None:
    """Whether the provider says the white space again or not, it is there once."""
    assert taken(SpaceTrim(space), pieces_of(space + rest, sizes)) == rest
    if not shared(space, rest):
        assert taken(SpaceTrim(space), pieces_of(rest, sizes)) == rest


def test_part_of_the_space_is_dropped_as_far_as_it_is_the_same() -> None:
    """One line break of two, said again, is none too many; what differs is the model's own."""
    assert taken(SpaceTrim("\n\n"), ["\n", "Then", "\n"]) == "Then\n"
    assert taken(SpaceTrim("  "), ["\n  Then"]) == "\n  Then"


# --- ReplayTrim


@settings(max_examples=150)
@given(TEXTS, TEXTS, SIZES)
def test_replay_is_dropped(replayed: str, rest: str, sizes: list[int]) -> None:
    """What was said since the checkpoint is not said twice."""
    assert taken(ReplayTrim(replayed), pieces_of(replayed + rest, sizes)) == rest


@settings(max_examples=150)
@given(TEXTS, TEXTS, SIZES)
def test_replay_that_differs_is_an_error(replayed: str, other: str, sizes: list[int]) -> None:
    """Another text, and one that ends before the client's does, cannot be joined."""
    assume(not other.startswith(replayed))
    assert taken(ReplayTrim(replayed), pieces_of(other, sizes)) is None


# --- StopTrim


def test_stop_sequence_over_the_seam_stops() -> None:
    """Its beginning was delivered, its end is not, and nothing is behind it."""
    trim = StopTrim("one\n", ["\n\nUser:"])
    assert [trim.take("\nUs"), trim.take("er: hello"), trim.take("more"), trim.finish()] == ["", "", "", ""]
    assert trim.is_stopped


def test_stop_sequence_that_does_not_come_is_text() -> None:
    """What was held back for it goes on, at the first letter that is another, or at the end."""
    trim = StopTrim("one\n", ["\n\nUser:"])
    assert [trim.take("\nUs"), trim.take("ually"), trim.take("\n\nUser")] == ["", "\nUsually", "\n\nUser"]
    assert not trim.is_stopped
    assert taken(StopTrim("one\n", ["\n\nUser:", ""]), ["\n", "User"]) == "\nUser"


def test_short_delivered_text_is_looked_at_whole() -> None:
    """A stop sequence may be longer than all that was delivered."""
    trim = StopTrim("END O", ["END OF ALL"])
    assert (trim.take("F ALL"), trim.is_stopped) == ("", True)


def test_stop_sequence_that_repeats_itself_may_have_begun_at_more_than_one_place() -> None:
    """The first at which it ends counts, and it does not end before it does."""
    assert taken(StopTrim("aaa", ["aaab"]), ["a", "x"]) == "ax"
    assert taken(StopTrim("aaa", ["aaab", "aaaab"]), ["a", "b", "x"]) == ""
    assert taken(StopTrim("xabab", ["ababb"]), ["a", "b", "b", "x"]) == ""
    assert taken(StopTrim("one END", ["END"]), ["x"]) == "x"


@settings(max_examples=400)
@given(
    st.text("ab\n", max_size=20),
    PLACES,
    st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3)
    | st.text("ab", min_size=2, max_size=4).map(lambda s: [s]),
    SIZES,
)
def test_stop_sequence_cuts_where_one_provider_would_have(
    text: str, place: float, stops: list[str], sizes: list[int]
) -> None:
    """What was delivered aside, the client has what one provider had sent that stops at the first to be complete."""
    assume(not any(one in other for one in stops for other in stops if one is not other))
    delivered, rest = cut_at(text, place)
    assume(not any(stop in delivered for stop in stops))
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    end = min(found)[1] if found else len(text)
    own = min((rest.index(stop) for stop in stops if stop in rest), default=len(rest))
    trim = StopTrim(delivered, stops)
    assert (
        taken(trim, pieces_of(rest[:own], sizes) if end >= len(delivered) else pieces_of(rest, sizes))
        == (text[len(delivered) : end])
    )
    assert trim.is_stopped == (end < len(delivered))


# --- choose_anchor


def test_anchor_is_about_the_last_characters_from_a_word() -> None:
    """A model is not asked to begin in the middle of a word."""
    anchor = choose_anchor(PROSE)
    assert anchor == "back into the river, as if nothing had been."
    assert choose_anchor(PROSE, 20) == "if nothing had been."


def test_short_text_is_its_own_anchor() -> None:
    """All of it is asked for where there is not more, but for white space in front, which nobody repeats."""
    assert choose_anchor("The mill ") == "The mill "
    assert choose_anchor("\n\n  The mill") == "The mill"


def test_blank_text_has_no_anchor() -> None:
    """White space is nothing to repeat."""
    assert choose_anchor("") is None
    assert choose_anchor(" \n\t" * 100) is None


def test_anchor_is_found_once_in_the_text() -> None:
    """Where the last words were said before, more of them are asked for."""
    text = "At first " + "it turned, and it groaned under the load. " * 2
    anchor = choose_anchor(text)
    assert anchor is not None
    assert len(anchor) > ANCHOR_CHARACTERS
    assert text.count(anchor) == 1


def test_text_that_only_repeats_itself_has_no_anchor() -> None:
    """An answer could go on from any of the places, however much it repeated."""
    assert choose_anchor("and the wheel turns " * 200) is None
    assert choose_anchor("na " * 8) is None
    assert choose_anchor("Once upon a time, " + "- " * 500) is None


def test_white_space_does_not_count_as_a_beginning() -> None:
    """Behind a long gap the anchor begins with the word in front of it."""
    assert choose_anchor("wheel and stones" + " " * 45 + "end") == "stones" + " " * 45 + "end"
    assert choose_anchor("The wheel and the stones" + "\n" * 500) == "stones" + "\n" * 500


@pytest.mark.parametrize("cluster", ["👩‍👩‍👧‍👦", "🇩🇪", "e\u0301\u0308", "👍🏽", "\u1112\u1161\u11ab", "1\ufe0f\u20e3"])
def test_anchor_takes_no_character_apart(cluster: str) -> None:
    """Where there are no spaces it still begins between what a reader sees as characters."""
    text = "".join(f"{chr(0x4E00 + number)}{cluster}" for number in range(60))
    for length in range(1, len(text)):
        anchor = choose_anchor(text[:length])
        assert anchor is not None
        assert not text[:length].removesuffix(anchor).endswith("\u200d")
        assert 0x4E00 <= ord(anchor[0]) < 0x4E40 or anchor.startswith(cluster)


def test_mark_on_a_space_is_no_beginning() -> None:
    """What looks like a word's first letter may belong to the space."""
    text = "one two \u0301three-" + "x1" * 9 + "."
    assert choose_anchor(text, 22) == text[len("one ") :]


@settings(max_examples=400)
@given(TEXTS, COUNTS)
def test_anchor_is_an_end_of_the_text_and_nothing_else(text: str, count: int) -> None:
    """It ends the text, stands in it once, begins with a whole character, and is missing only where it must be."""
    anchor = choose_anchor(text, count)
    if anchor is None:
        bare = text.lstrip()
        assert not bare or len(bare) > MAX_ANCHOR_CHARACTERS or repeats_itself(bare)
        return
    assert text.endswith(anchor)
    assert text.find(anchor) == len(text) - len(anchor)
    assert len(anchor) >= min(count, len(text.lstrip()))
    assert not anchor[0].isspace()
    if anchor != text.lstrip():
        assert not unicodedata.category(anchor[0]).startswith("M")
        assert "\u200d" not in (anchor[0], text[-len(anchor) - 1])


# --- AnchorTrim: a model that does as it was asked


@settings(max_examples=600)
@given(TEXTS, PLACES, COUNTS, SIZES, st.text(" \n", max_size=3))
def test_obedient_model_makes_the_text_whole(text: str, place: float, count: int, sizes: list[int], space: str) -> None:
    """Wherever the text broke off, the client has all of it once; where it soon says the same again it may fail."""
    delivered, rest = cut_at(text, place)
    anchor = choose_anchor(delivered, count)
    assume(anchor is not None)
    assert anchor is not None
    whole = joined(delivered, anchor, space + anchor + rest, sizes)
    if comes_again(delivered, anchor, rest):
        assert whole in (text, None)
    else:
        assert whole == text


@pytest.mark.parametrize(
    "text", [PROSE, CODE, TABLE, GRAPHEMES, REFRAIN], ids=["prose", "code", "table", "emoji", "song"]
)
def test_obedient_model_makes_the_text_whole_from_every_place(text: str) -> None:
    """It may be cut behind any letter; what fails for saying the same again is a hundredth, but of a song half."""
    found = failed = 0
    for at in range(1, len(text) + 1):
        delivered, rest = text[:at], text[at:]
        anchor = choose_anchor(delivered)
        if anchor is None:
            continue
        found += 1
        whole = joined(delivered, anchor, anchor + rest, [3])
        failed += whole is None
        assert whole == text or (whole is None and comes_again(delivered, anchor, rest))
    assert found > len(text) * 0.6
    assert failed <= found * (0.5 if text == REFRAIN else 0.02)


@settings(max_examples=300)
@given(TEXTS, PLACES, PLACES, COUNTS, SIZES)
def test_more_of_the_text_may_be_repeated(text: str, place: float, more: float, count: int, sizes: list[int]) -> None:
    """From any place a little before the anchor, or from the very start."""
    delivered, rest = cut_at(text, place)
    anchor = choose_anchor(delivered, count)
    assume(anchor is not None)
    assert anchor is not None
    again = delivered[round(more * (len(delivered) - len(anchor))) :]
    for said in (again, delivered):
        whole = joined(delivered, anchor, said + rest, sizes)
        is_far = len(said) > MAX_PREAMBLE_CHARACTERS + 4 * len(anchor)
        if (is_far and said != delivered) or comes_again(delivered, anchor, rest):
            assert whole in (text, None)
        else:
            assert whole == text


@pytest.mark.parametrize(
    "preamble",
    [
        "Of course. Here is the rest:",
        "Sure!\n\nContinuing from where it was cut off:",
        "Here's the continuation:",
        "Okay, I’ll pick up where I left off.",
        "Picking up exactly where the answer stopped:",
    ],
)
@pytest.mark.parametrize("more", [0, 1, 17])
def test_words_on_lines_of_their_own_are_dropped(preamble: str, more: int) -> None:
    """A model that says that it goes on, and then does as it was asked, is understood."""
    delivered, rest = PROSE[:250], PROSE[250:]
    anchor = choose_anchor(delivered)
    assert anchor is not None
    said = delivered[-len(anchor) - more :]
    for sizes in ([], [1], [7, 2]):
        assert joined(delivered, anchor, f"{preamble}\n\n{said}{rest}", sizes) == PROSE
        assert joined(delivered, anchor, f"\n{preamble}\n{said}{rest[:9]}", sizes) == delivered + rest[:9]


def test_obedient_model_is_not_held_up_for_long() -> None:
    """Once a line's words have come behind the anchor that are not the anchor again, all else passes as it comes."""
    delivered, rest = PROSE[:250], PROSE[250:]
    anchor = choose_anchor(delivered)
    assert anchor is not None
    trim = AnchorTrim(delivered, anchor)
    assert trim.take(anchor) == ""
    ahead = len(anchor) + ANCHOR_CHARACTERS
    assert trim.take(rest[: ahead - 1]) == ""
    assert trim.take(rest[ahead - 1 : ahead]) == rest[:ahead]
    assert trim.take("more") == "more"
    assert trim.finish() == ""


def test_anchor_may_come_again_later() -> None:
    """What is said a second time some lines behind the seam is the text's own."""
    rest = f" on the left bank.\n{PROSE[:200]}\n"
    delivered = "There is a mill, and its wheel is turned by the water of the river"
    anchor = choose_anchor(delivered)
    assert anchor is not None
    for sizes in ([], [1], [40]):
        assert joined(delivered, anchor, anchor + rest + anchor, sizes) == delivered + rest + anchor


# --- AnchorTrim: a model that does not

Answer = Callable[[str, str, str], str]

PREAMBLES = (
    "Of course. Here is the rest:",
    "Continuing:",
    "I will continue from this:",
    "I will go on from here:",
    "Sure, I will continue from here:",
    "Sure, I'll go on:",
)

DISOBEDIENCE: dict[str, Answer] = {
    "preamble": lambda _, anchor, rest: f"Of course. Here is the rest:\n\n{anchor}{rest}",
    "long preamble": lambda _, anchor, rest: f"Here is the rest, {'so to say, ' * 30}:\n{anchor}{rest}",
    "other preamble": lambda _, anchor, rest: f"The missing part follows now.\n\n{anchor}{rest}",
    "preamble on the line": lambda _, anchor, rest: f"Continuing: {anchor}{rest}",
    "preamble and no anchor": lambda _, __, rest: f"Of course. Here is the rest:\n\n{rest}",
    "preamble and half": lambda _, anchor, rest: f"Continuing:\n{anchor[len(anchor) // 2 :]}{rest}",
    "preamble and nothing": lambda _, anchor, __: f"Sure, I will continue from here:\n{anchor}",
    "preamble and quotation": lambda _, anchor, rest: f"I will go on from here:\n{anchor}\n\n{rest}",
    "two preambles": lambda _, anchor, rest: f"You want me to go on from:\n{anchor}\nHere it is:\n{anchor}{rest}",
    "two harmless preambles": lambda _, anchor, rest: (
        f"I will continue from this:\n{anchor}\nHere is the rest:\n{anchor}{rest}"
    ),
    "quotation on the line": lambda _, anchor, rest: f'It ended with "{anchor}". Going on:\n\n{anchor}{rest}',
    "quotation on its line": lambda _, anchor, rest: f'"{anchor}"\n\n{anchor}{rest}',
    "quotation without marks": lambda _, anchor, rest: f"{anchor}\n\n{anchor}{rest}",
    "quotation, then comment": lambda _, anchor, rest: (
        f"{anchor}\n\nThis is where I was interrupted, and I go on:\n\n{anchor}{rest}"
    ),
    "quotation, comment beside": lambda _, anchor, rest: f"{anchor} (and then:) {anchor}{rest}",
    "preamble, quotation, comment": lambda _, anchor, rest: (
        f"I will go on from here:\n{anchor} is the end of it, {'as far as I see, ' * 5}and here I go:\n{anchor}{rest}"
    ),
    "block quotation": lambda _, anchor, rest: f"> {anchor}\n\n{anchor}{rest}",
    "twice": lambda _, anchor, rest: f"{anchor}{anchor}{rest}",
    "twice and more": lambda delivered, anchor, rest: f"{delivered[-2 * len(anchor) :]}{anchor}{rest}",
    "end, then all": lambda delivered, anchor, rest: f"{anchor}\n\n{delivered}{rest}",
    "all twice": lambda delivered, _, rest: f"{delivered}{delivered}{rest}",
    "half": lambda _, anchor, rest: f"{anchor[len(anchor) // 2 :]}{rest}",
    "a third": lambda _, anchor, rest: f"{anchor[-(len(anchor) // 3) :]}{rest}",
    "nothing": lambda _, __, rest: rest,
    "its beginning only": lambda _, anchor, rest: f"{anchor[:-1]}{rest}",
    "without its first letter": lambda _, anchor, rest: f"{anchor[1:]}{rest}",
    "another text": lambda _, __, ___: "I am sorry, but I do not see what to go on with. What was it about?\n" * 9,
    "other words": lambda _, anchor, rest: f"In other words, {' '.join(reversed(anchor.split()))}{rest}",
    "all in other words": lambda delivered, _, rest: f"{delivered[: len(delivered) // 2]} well, {rest}",
    "capitals": lambda _, anchor, rest: f"{anchor.swapcase()}{rest}",
    "other quotes": lambda _, anchor, rest: f"{anchor.translate({8220: 34, 8221: 34, 39: 8217, 8212: 45})}{rest}",
    "other spaces": lambda _, anchor, rest: f"{' '.join(anchor.split())}{rest}",
    "spaces gone": lambda _, anchor, rest: f"{anchor.rstrip()}{rest}",
    "composed": lambda _, anchor, rest: f"{unicodedata.normalize('NFC', anchor)}{rest}",
    "fence": lambda _, anchor, rest: f"```\n{anchor}{rest}\n```",
    "fence with preamble": lambda _, anchor, rest: f"Here is the rest:\n\n```text\n{anchor}{rest}\n```",
    "dots": lambda _, anchor, rest: f"...{anchor}{rest}",
    "dots and a space": lambda _, anchor, rest: f"… {anchor}{rest}",
    "spaces": lambda _, anchor, rest: f" \n  {anchor}{rest}",
    "twice as much": lambda delivered, anchor, rest: f"{delivered[-2 * len(anchor) :]}{rest}",
    "three times as much": lambda delivered, anchor, rest: f"{delivered[-3 * len(anchor) :]}{rest}",
    "everything": lambda delivered, _, rest: f"{delivered}{rest}",
    "everything with preamble": lambda delivered, _, rest: f"Sure, I'll go on:\n\n{delivered}{rest}",
}
UNDERSTOOD = {
    "preamble",
    "spaces",
    "twice as much",
    "three times as much",
    "everything",
    "everything with preamble",
}
HARMLESS = {"capitals", "other quotes", "other spaces", "spaces gone", "composed"}
"""They change what not every anchor has."""

BY_A_LETTER = {"its beginning only", "other spaces", "spaces gone"}
"""Where the letter that was left out of the anchor is also the next, that one is lost, and nobody can know."""

COMMENT = "\n\n(This is all that was missing.)"


def believed(delivered: str, anchor: str, answer: str) -> str | None:
    """Return what the client has where an answer does as it was asked, by its looks; ``None`` where it does not.

    It begins with an end of what was delivered, not shorter than the anchor, perhaps behind words on their own lines.
    """
    said = answer.lstrip()
    for preamble in ("", *PREAMBLES):
        rest = said.removeprefix(preamble).lstrip("\n")
        at = rest.find(anchor)
        if said.startswith(preamble) and at >= 0 and delivered.endswith(rest[: at + len(anchor)]):
            return delivered + rest[at + len(anchor) :]
    return delivered + said[len(delivered.lstrip()) :] if said.startswith(delivered.lstrip()) else None


def check(delivered: str, anchor: str, rest: str, answer: str, sizes: Sequence[int]) -> str | None:
    """Assert that an answer makes the text whole, or fails: no third way, but for those in the module's docstring."""
    whole = joined(delivered, anchor, answer, sizes)
    assert whole is None or whole in (delivered + rest, believed(delivered, anchor, answer))
    if whole is not None and len(anchor) < LEAST_ANCHOR_CHARACTERS:
        assert whole.lstrip() == answer.lstrip()
    return whole


@pytest.mark.parametrize("answer", DISOBEDIENCE.values(), ids=DISOBEDIENCE.keys())
@settings(max_examples=60)
@given(text=TEXTS, place=PLACES, count=COUNTS, sizes=SIZES)
def test_disobedient_model_gives_the_whole_text_or_an_error(
    answer: Answer, text: str, place: float, count: int, sizes: list[int]
) -> None:
    """Whatever it does, no character is doubled or lost."""
    delivered, rest = cut_at(text, place)
    anchor = choose_anchor(delivered, count)
    if anchor is not None:
        check(delivered, anchor, rest, answer(delivered, anchor, rest), sizes)


@pytest.mark.parametrize("name", DISOBEDIENCE)
@pytest.mark.parametrize("text", [PROSE, CODE, TABLE, GRAPHEMES], ids=["prose", "code", "table", "emoji"])
def test_disobedience_does_no_harm_at_any_place(text: str, name: str) -> None:
    """Every cut of a few texts that do not repeat themselves: the whole text, where it can be known, or an error."""
    whole_count = count = 0
    for at in range(ANCHOR_CHARACTERS, len(text)):
        delivered, rest = text[:at], text[at:]
        anchor = choose_anchor(delivered)
        assert anchor is not None
        whole = check(delivered, anchor, rest, DISOBEDIENCE[name](delivered, anchor, rest), [5])
        assert whole in (text, None) or name in BY_A_LETTER
        count += 1
        whole_count += whole == text
    if name in UNDERSTOOD:
        assert whole_count > 0.7 * count
    elif name not in HARMLESS:
        assert whole_count == 0


@pytest.mark.parametrize("answer", DISOBEDIENCE.values(), ids=DISOBEDIENCE.keys())
def test_song_is_joined_as_it_is_read(answer: Answer) -> None:
    """A rest that begins with the anchor once more is taken for the anchor; nothing else happens to such a text."""
    for at in range(1, len(REFRAIN) + 1):
        delivered, rest = REFRAIN[:at], REFRAIN[at:]
        anchor = choose_anchor(delivered)
        if anchor is not None:
            check(delivered, anchor, rest, answer(delivered, anchor, rest), [5])


@settings(max_examples=150)
@given(TEXTS, PLACES, SIZES, st.sampled_from([COMMENT, "\n```", "\n" + "-" * 40]))
def test_what_is_behind_the_rest_is_the_models_own(text: str, place: float, sizes: list[int], comment: str) -> None:
    """A comment or a fence at the end cannot be told from text; what is before it is still joined rightly."""
    delivered, rest = cut_at(text, place)
    anchor = choose_anchor(delivered)
    if anchor is not None:
        assert joined(delivered, anchor, anchor + rest + comment, sizes) in (text + comment, None)


def test_short_text_is_believed_as_it_is() -> None:
    """Behind a few letters nothing can be found: an answer that begins with them is the answer, any other none."""
    for sizes in ([], [1], [3]):
        assert joined("The ", "The ", "The mill, The river", sizes) == "The mill, The river"
        assert joined("\nThe", "The", "  The mill", sizes) == "\nThe mill"
        assert joined("The ", "The ", "Sure: The mill", sizes) is None
        assert joined("The ", "The ", "Here is the rest:\nThe mill", sizes) is None
        assert joined("The ", "The ", "Th", sizes) is None


def test_preamble_that_the_text_itself_has_is_no_preamble() -> None:
    """A text with headings like these goes on with the next: what is behind would be the wrong part."""
    step = "npm install --save-dev the-mill-and-its-wheel"
    text = f"Here is the rest:\n\n1. {step} first\n\nHere is the rest:\n\n{step} second\n"
    delivered = text[: text.index(" first")]
    anchor = choose_anchor(delivered)
    assert anchor is not None
    assert joined(delivered, anchor, text[len(delivered) + len(" first\n") :]) is None


def test_pause_behind_a_preamble_is_no_seam() -> None:
    """A line that ends with the anchor may have quoted it; the one that goes on in its middle has not."""
    delivered = PROSE[:250]
    anchor = choose_anchor(delivered)
    assert anchor is not None
    preamble = "I will go on from here:\n"
    assert joined(delivered, anchor, f"{preamble}{anchor}...\n{PROSE[250:]}", [1]) is None
    assert joined(delivered, anchor, f"{preamble}{anchor}{'.' * 40} and", [1]) is None
    assert joined(delivered, anchor, f"{preamble}{anchor}.", [1]) is None
    assert joined(delivered, anchor, f"{preamble}{anchor} so") == f"{delivered} so"


@settings(max_examples=300)
@given(TEXTS, PLACES, st.sampled_from(list(DISOBEDIENCE.values())), SIZES)
def test_pieces_make_no_difference(text: str, place: float, answer: Answer, sizes: list[int]) -> None:
    """An answer that comes at once, by the letter, or somehow between, is judged alike."""
    delivered, rest = cut_at(text, place)
    anchor = choose_anchor(delivered)
    if anchor is not None:
        said = answer(delivered, anchor, rest)
        outcomes = {joined(delivered, anchor, said, each) for each in ([], [1], sizes)}
        assert len(outcomes) == 1


# --- what it costs

LONG = "".join(f"Sack {number} was ground on the {number % 31 + 1}th.\n" for number in range(7000))[:200_000]


def test_text_without_the_anchor_is_not_held_for_long() -> None:
    """A model that says something else is found out after a few hundred characters, not at its end."""
    anchor = choose_anchor(LONG)
    assert anchor is not None
    for answer in ("Something else. " * 100, LONG[:90] + "! " * 1000, "x" * 2000):
        most = MAX_PREAMBLE_CHARACTERS + 4 * len(anchor)
        said_again = shared(LONG, answer)
        trim = AnchorTrim(LONG, anchor)
        for letter in answer[: max(said_again, most - 1)]:
            assert trim.take(letter) == ""
        with pytest.raises(StreamInterrupted):
            trim.take(answer[max(said_again, most - 1)])


def make_trims() -> dict[str, Trim]:
    """Return trims that have 200 000 characters to compare with."""
    anchor = choose_anchor(LONG)
    assert anchor is not None
    return {
        "echo": EchoTrim(LONG, expected=True),
        "unexpected echo": EchoTrim(LONG, expected=False),
        "space": SpaceTrim(LONG),
        "replay": ReplayTrim(LONG),
        "anchor": AnchorTrim(LONG, anchor),
    }


@pytest.mark.parametrize("name", make_trims())
def test_long_text_said_again_letter_by_letter_takes_no_long_time(name: str) -> None:
    """200 000 characters are not looked at again for each of 100 000 pieces, and then the rest is found."""
    trim = make_trims()[name]
    begun_at_s = time.process_time()
    assert "".join(map(trim.take, LONG[:100_000])) == ""
    assert time.process_time() - begun_at_s < 3
    new = trim.take(LONG[100_000:]) + trim.take("And so on.") + trim.finish()
    assert new == "And so on."


def test_long_stop_sequence_takes_no_long_time() -> None:
    """Nor one that could have begun at each of many places."""
    begun_at_s = time.process_time()
    for stop, delivered in ((LONG[-1] + LONG, LONG), ("a" * 100_000 + "b", "a" * 1000)):
        trim = StopTrim(delivered, [stop])
        assert "".join(map(trim.take, stop[1:-1][:1000])) == ""
        assert not trim.is_stopped
        assert trim.take(stop[1001:]) == ""
        assert trim.is_stopped
    assert time.process_time() - begun_at_s < 3


def test_anchor_of_a_long_text_is_chosen_in_no_long_time() -> None:
    """Also where no end of it is its own."""
    begun_at_s = time.process_time()
    assert choose_anchor(LONG) is not None
    assert choose_anchor("ab" * 100_000) is None
    assert choose_anchor("\n" * 200_000 + "ab") == "ab"
    assert time.process_time() - begun_at_s < 3
