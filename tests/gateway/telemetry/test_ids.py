import os
import re

import pytest

from gateway.telemetry.ids import new_id


@pytest.mark.parametrize("size_bytes", [1, 8, 12, 16, 24])
def test_an_id_is_hex_of_its_size(size_bytes: int) -> None:
    """In lower case, and never shorter."""
    assert all(re.fullmatch(f"[0-9a-f]{{{2 * size_bytes}}}", new_id(size_bytes)) for _ in range(1000))


def test_no_id_comes_twice() -> None:
    """Neither do pieces of them, such as the part of a trace's id by which it is sampled."""
    ids = [new_id(16) for _ in range(20_000)]
    assert len(set(ids)) == len({one[:16] for one in ids}) == len({one[16:] for one in ids}) == len(ids)


def test_ids_are_as_often_odd_as_even() -> None:
    """Every bit of them is random: each is set in about half of them."""
    ids = [int(new_id(16), 16) for _ in range(4000)]
    for bit in range(128):
        count = sum(one >> bit & 1 for one in ids)
        assert abs(count - 2000) < 320, f"bit {bit} was set in {count} of 4000"  # ten standard deviations


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_ids_of_its_own() -> None:
    """It begins with the same memory, and would give the same ids."""
    new_id(16)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover, in another process
        os.write(writing, new_id(16).encode())
        os._exit(0)
    os.close(writing)
    theirs = os.read(reading, 32).decode()
    os.close(reading)
    os.waitpid(child, 0)
    assert re.fullmatch("[0-9a-f]{32}", theirs)
    assert theirs != new_id(16)
