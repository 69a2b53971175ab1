"""The compact notation: every key is read, and every fault is named."""

import contextlib
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gateway.simulator
from gateway.simulator.script import Script, ScriptError, parse_script, split_model


def test_keys_and_values_are_read() -> None:
    """Numbers, words, switches and percent-encoded text become fields."""
    script = parse_script("cut_after_tokens=20&cut=rst&first_token_s=1.5&no_end&close_delimited=off&say=a%20%26%20b")
    assert script == Script(cut_after_tokens=20, cut="rst", first_token_s=1.5, no_end=True, say="a & b")


def test_an_empty_script_is_the_default() -> None:
    """Nothing said is nothing changed."""
    assert parse_script("") == Script()


def test_what_is_not_said_is_as_in_the_base() -> None:
    """A script changes only what it names."""
    base = Script(interval_s=0, first_token_s=0)
    assert parse_script("status=503", base) == Script(interval_s=0, first_token_s=0, status=503)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cut=maybe", "script key 'cut' takes one of fin, rst, clean, not 'maybe'"),
        ("stall_s=long", "script key 'stall_s' takes a number of seconds, not 'long'"),
        ("stall_s=-1", "script key 'stall_s' takes a number of seconds, not '-1'"),
        ("stall_s=nan", "script key 'stall_s' takes a number of seconds, not 'nan'"),
        ("token_count=1.5", "script key 'token_count' takes a whole number, 0 or more, not '1.5'"),
        ("cut_after_bytes=-3", "script key 'cut_after_bytes' takes a whole number, 0 or more, not '-3'"),
        ("status=200", "script key 'status' takes 0 or an HTTP error, 400 to 599, not '200'"),
        ("no_end=perhaps", "script key 'no_end' takes on or off, not 'perhaps'"),
        ("cut=rst&cut=fin", "script key 'cut' is given twice"),
    ],
)
def test_a_bad_value_is_one_clear_fault(text: str, fault: str) -> None:
    """The fault names the key, what it takes and what it got."""
    with pytest.raises(ScriptError) as error:
        parse_script(text)
    assert error.value.faults == (fault,)


def test_every_fault_is_named_not_only_the_first() -> None:
    """An unknown key and a bad value are two faults."""
    with pytest.raises(ScriptError) as error:
        parse_script("foo=1&status=abc")
    assert len(error.value.faults) == 2
    assert "unknown script key 'foo'; known keys: status, " in str(error.value)


@given(st.text())
def test_any_text_is_a_script_or_a_script_error(text: str) -> None:
    """No input raises anything else."""
    with contextlib.suppress(ScriptError):
        parse_script(text)


def test_a_model_is_split_from_its_script() -> None:
    """The first question mark divides; without one there is no script."""
    assert split_model("mill?cut=rst&say=what?") == ("mill", "cut=rst&say=what?")
    assert split_model("mill") == ("mill", "")


def test_every_key_is_in_the_documentation() -> None:
    """The package's docstring, which is the manual, leaves none out."""
    manual = gateway.simulator.__doc__ or ""
    assert [one.name for one in fields(Script) if f"`{one.name}" not in manual] == []


@pytest.mark.parametrize(
    "script",
    [Script(cut_after_tokens=0), Script(cut_after_bytes=1), Script(split_bytes=2), Script(close_delimited=True)],
)
def test_a_fault_in_the_body_shapes_it(script: Script) -> None:
    """Whatever touches the bytes needs them written one by one."""
    assert script.shapes_body
    assert not Script(status=500, first_token_s=3).shapes_body
