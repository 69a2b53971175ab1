import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from gateway.process.channel import Channel, receive, send


class Word(msgspec.Struct, frozen=True, tag=True):
    """Something that is said."""

    said: str


class End:
    """One end of a channel, and what came to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[tuple[str, Sequence[int]]] = []
        self.has_ended = asyncio.Event()
        self._changed = asyncio.Event()
        self.channel: Channel[Word] = Channel(sock, Word, on_message=self._hear, on_end=self.has_ended.set)

    def _hear(self, word: Word, fds: Sequence[int]) -> None:
        self.heard.append((word.said, fds))
        self._changed.set()

    async def hear(self, count: int) -> list[tuple[str, Sequence[int]]]:
        """Wait for so many messages."""
        async with asyncio.timeout(30):
            while len(self.heard) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.heard


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    """Return both ends."""
    one, other = socket.socketpair()
    both = End(one), End(other)
    yield both
    for end in both:
        end.channel.close()


async def test_messages_arrive_whole_and_in_order_in_both_directions(ends: tuple[End, End]) -> None:
    """However large they are, and although nobody waits for them to be taken."""
    one, other = ends
    said = [str(number) * size for number, size in enumerate((1, 300_000, 2, 1_000_000, 3))]
    for word in said:
        one.channel.send(Word(word))
        other.channel.send(Word(word))
    for end in ends:
        assert await end.hear(len(said)) == [(word, []) for word in said]


async def test_descriptors_arrive_with_the_message_they_were_sent_with(ends: tuple[End, End]) -> None:
    """Between messages without any, in one read with them; the sender keeps its own."""
    one, other = ends
    pipes = [os.pipe() for _ in range(3)]
    one.channel.send(Word("none"))
    one.channel.send(Word("two"), [pipes[0][1], pipes[1][1]])
    one.channel.send(Word("none" * 100_000))
    one.channel.send(Word("one"), [pipes[2][1]])
    heard = await other.hear(4)
    assert [len(fds) for _, fds in heard] == [0, 2, 0, 1]
    received = [fd for _, fds in heard for fd in fds]
    for (reader, writer), fd in zip(pipes, received, strict=True):
        os.write(fd, b"a")
        os.write(writer, b"b")
        os.close(fd)
        os.close(writer)
        assert os.read(reader, 2) == b"ab"
        assert os.read(reader, 2) == b"", "nobody has kept a copy"
        os.close(reader)


async def test_the_end_of_the_other_side_is_told_once_and_behind_all_that_it_said(ends: tuple[End, End]) -> None:
    """Then whatever is sent is lost, and no error."""
    one, other = ends
    one.channel.send(Word("last"))
    one.channel.close()
    async with asyncio.timeout(30):
        await other.has_ended.wait()
    assert other.heard == [("last", [])]
    assert not one.has_ended.is_set(), "who closes it knows"
    assert other.channel.is_closed
    other.channel.send(Word("nobody"))


async def test_who_does_not_read_stalls_nobody_and_what_it_was_sent_is_let_go() -> None:
    """What was kept for it goes with the channel, descriptors too."""
    one, other = socket.socketpair()
    end = End(one)
    reader, writer = os.pipe()
    for _ in range(8):
        end.channel.send(Word("x" * 200_000), [writer])
    os.close(writer)
    end.channel.close()
    other.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_a_message_can_be_waited_for_without_a_loop_and_those_behind_it_are_left() -> None:
    """A new process does so, before it knows which loop to run."""
    one, other = socket.socketpair()
    end = End(one)
    reader, writer = os.pipe()
    got: list[Any] = []
    end.channel.send(Word("first"), [writer])
    end.channel.send(Word("second"))
    thread = threading.Thread(target=lambda: got.append(receive(other, Word)))
    thread.start()
    await asyncio.to_thread(thread.join)
    ((word, (fd,)),) = got
    assert word == Word("first")
    for number in (fd, writer, reader):
        os.close(number)
    behind = End(other)
    assert await behind.hear(1) == [("second", [])]
    for channel in (end.channel, behind.channel):
        channel.close()


def test_nothing_more_comes_from_who_is_gone() -> None:
    """In the middle of a message or before it; what is sent to it is lost."""
    for begun in (b"", b"\0\0", b"\0\0\0\x20\0{"):
        one, other = socket.socketpair()
        with one, other:
            one.sendall(begun)
            one.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError):
                receive(other, Word)
            one.close()
            send(other, Word("nobody"))


async def test_one_message_can_be_sent_without_a_loop() -> None:
    """By a process that cannot begin."""
    one, other = socket.socketpair()
    end = End(other)
    send(one, Word("sorry"))
    assert await end.hear(1) == [("sorry", [])]
    end.channel.close()
    one.close()
