import pytest

from gateway.known_head import KnownHead

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: me\r\nContent-Length: 2\r\nx-who: you\r\n\r\n"


def known(data: bytes = HEAD) -> KnownHead:
    """Return what is kept of a head."""
    head = KnownHead.of(data)
    assert head is not None
    return head


def test_a_head_is_kept_in_two_parts_around_the_length() -> None:
    """With that and its end they are the head again; what follows is no part of it."""
    head = known(HEAD + b"{}GET")
    assert head.before + head.length + head.behind == HEAD
    assert head.length == b"2"
    assert head.request_bytes == len(HEAD) + 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        HEAD[:-1],
        HEAD.replace(b"Content-Length", b"Content-Lengths"),
        HEAD.replace(b"Content-Length: 2\r\n", b""),
        HEAD.replace(b": 2\r", b": 2 \r"),
        HEAD.replace(b": 2\r", b": -2\r"),
        HEAD.replace(b": 2\r", b": 1234567890\r"),
        HEAD.replace(b"Content-Length: 2\r\n", b"") + b"\r\ncontent-length: 2\r\n\r\n",
    ],
)
def test_a_head_without_an_end_or_a_plain_length_is_not_kept(data: bytes) -> None:
    """Neither is one whose length stands only in what follows it."""
    assert KnownHead.of(data) is None


def test_it_is_known_again_whatever_the_length_is() -> None:
    """If as much follows as it says."""
    assert known().recall(HEAD + b"{}") == (b"2", b"{}")
    assert known().recall(HEAD.replace(b": 2", b": 10") + b"0123456789") == (b"10", b"0123456789")
    assert known().recall(HEAD.replace(b": 2", b": 0")) == (b"0", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD,
        HEAD + b"{",
        HEAD + b"{ }",
        HEAD[:-10],
        HEAD.replace(b"you", b"me!") + b"{}",
        HEAD.replace(b"you", b"YOU") + b"{}",
        HEAD.replace(b"me", b"mi") + b"{}",
        HEAD.replace(b"POST", b"GETS") + b"{}",
        HEAD.replace(b": 2", b": ") + b"{}",
        HEAD.replace(b": 2", b": +2") + b"{}",
        HEAD.replace(b": 2", b":  2") + b"{}",
        HEAD.replace(b": 2", b": 2_0") + b"{}",
        HEAD.replace(b": 2", b": 0000000002") + b"{}",
        HEAD.replace(b": 2", b": 2\nx: y") + b"{}",
        HEAD.replace(b": 2", b": 2\r\nx: y") + b"{}",
        HEAD.replace(b": 2\r", b": 2") + b"{}",
    ],
)
def test_what_differs_in_anything_else_is_not(data: bytes) -> None:
    """Nothing is understood: it is the same, or it is not."""
    assert known().recall(data) is None
