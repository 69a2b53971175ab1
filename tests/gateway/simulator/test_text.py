"""The text is always the same for a conversation, and its tokens are the text."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.text import digest, number, piece_for, pieces, reasoning_for, text_of_length, tokenize

FAMILY = "👩‍👩‍👧‍👦"


def test_pieces_are_worth_reading_and_of_a_fit_length() -> None:
    """There are eight to twelve pieces of 150 to 350 words, and some are not plain ASCII."""
    words = [len(piece.split()) for piece in pieces()]
    assert 8 <= len(words) <= 12
    assert all(150 <= count <= 350 for count in words)
    together = "".join(pieces())
    assert [sign for sign in ("“", "é", "–", "水", FAMILY, "   - ", "```python") if sign not in together] == []


def test_a_seed_always_picks_the_same_piece() -> None:
    """The choice does not depend on the process, as Python's own hash would."""
    assert number("a question", 1000) == 927
    assert piece_for("a question") == piece_for("a question")
    assert reasoning_for("a question") in pieces("prose/reasoning")


def test_every_piece_is_picked_by_some_seed() -> None:
    """No piece is out of reach."""
    assert {piece_for(str(seed)) for seed in range(200)} == set(pieces())


def test_digest_knows_where_a_part_ends() -> None:
    """Moving a letter from one part to the next is another digest."""
    assert digest("ab", "c") != digest("a", "bc")


def test_a_text_of_a_length_has_exactly_so_many_tokens() -> None:
    """Short or long, the count is exact, and a longer text begins with the shorter."""
    for count in (0, 1, 7, 299, 5000):
        assert len(tokenize(text_of_length("seed", count))) == count
    assert text_of_length("seed", 900).startswith(piece_for("seed"))
    assert text_of_length("seed", 900).startswith(text_of_length("seed", 20))


@given(st.text())
def test_tokens_put_together_are_the_text(text: str) -> None:
    """Nothing is lost, added or moved, and no token is empty."""
    tokens = tokenize(text)
    assert "".join(tokens) == text
    assert all(tokens)


GRAPHEMES = st.sampled_from(["a", " ", "e\u0301", FAMILY, "👍🏽", "🇩🇪", "❤️", "水", ".", "\r\n"])


@given(st.lists(GRAPHEMES).map("".join))
def test_no_token_begins_inside_a_grapheme(text: str) -> None:
    """An accent, a joiner, a skin tone or half a flag never comes first, and no token ends with a joiner."""
    for token in tokenize(text):
        assert not unicodedata.category(token[0]).startswith("M")
        assert token[0] not in "\u200d🏽\n"
        assert not token.endswith(("\u200d", "\r"))
        assert sum(0x1F1E6 <= ord(letter) <= 0x1F1FF for letter in token) % 2 == 0


def test_tokens_have_about_four_characters() -> None:
    """The average over all prose is near what real tokenizers give for English."""
    text = "".join(pieces())
    assert 3.5 < len(text) / len(tokenize(text)) < 4.5
