from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from typing import Any

import pytest

from gateway.core.call import Call
from gateway.core.errors import Unauthorized
from gateway.pipeline import Authenticator
from middleware.auth import MAX_KEY_CHARACTERS, Auth, Key
from tests.middleware.scripted_endpoint import ANSWER, ScriptedEndpoint, ignore

WEB, CLI = "web-key-0123456789", "ключ-0123456789"


def make_key(name: str, key: str) -> Key:
    """Return a client as the configuration has it."""
    return Key(name, hashlib.sha256(key.encode()).hexdigest())


@pytest.fixture
def auth() -> Auth:
    """Two clients, one of them twice under other names."""
    return Auth((make_key("web", WEB), make_key("cli", CLI), make_key("web-again", WEB)))


def refusal(auth: Auth, credential: str | None) -> Unauthorized:
    """Return the error that a credential gets."""
    with pytest.raises(Unauthorized) as refused:
        auth.authenticate(credential)
    assert refused.value.status_code == 401
    return refused.value


@pytest.mark.parametrize(("key", "client"), [(WEB, "web"), (CLI, "cli")])
def test_a_configured_key_is_its_client(auth: Auth, key: str, client: str) -> None:
    """In any script, and the first of two with the same key."""
    assert auth.authenticate(key) == client


@pytest.mark.parametrize("credential", [None, ""])
def test_no_key_is_told_how_to_send_one(auth: Auth, credential: str | None) -> None:
    """The three forms are named."""
    error = refusal(auth, credential)
    assert error.code == "missing_api_key"
    assert all(form in error.message for form in ("Authorization: Bearer", "x-api-key", "x-goog-api-key"))


@pytest.mark.parametrize(
    "credential",
    [
        "wrong",
        WEB[:-1],
        WEB + " ",
        WEB.upper(),
        hashlib.sha256(WEB.encode()).hexdigest(),
        "sha256:" + hashlib.sha256(WEB.encode()).hexdigest(),
        "\x00",
        "\udcff not UTF-8",
        "ключ",
    ],
)
def test_a_key_that_is_not_configured_is_refused(auth: Auth, credential: str) -> None:
    """Also one that is nearly right, and the hash of a right one; the message repeats nothing."""
    error = refusal(auth, credential)
    assert (error.code, error.message) == ("invalid_api_key", "the client key is not known here")


def test_a_key_may_be_so_long_and_no_longer() -> None:
    """A longer one is refused even if it begins like a known one, and costs no more to hash."""
    longest = "k" * MAX_KEY_CHARACTERS
    auth = Auth((make_key("long", longest), make_key("longer", longest + "k")))
    assert auth.authenticate(longest) == "long"
    refusal(auth, longest + "k")
    refusal(auth, longest * 1000)


def test_without_keys_nobody_is_asked_for_one() -> None:
    """The gateway then serves only its own machine."""
    auth = Auth()
    assert not auth.requires_key
    assert auth.authenticate(None) is None
    assert auth.authenticate("whatever") is None


def test_with_keys_everybody_is(auth: Auth) -> None:
    """And the server may ask before it reads a body."""
    assert auth.requires_key
    assert isinstance(auth, Authenticator)


@pytest.mark.parametrize("key", [WEB, CLI, "wrong"])
def test_every_hash_is_compared_in_constant_time(auth: Auth, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time taken says nothing about which key came close."""
    compared: list[Any] = []
    real = hmac.compare_digest

    def note(first: str, second: str) -> bool:
        compared.append(first)
        return real(first, second)

    monkeypatch.setattr("hmac.compare_digest", note)
    with suppress(Unauthorized):
        auth.authenticate(key)
    assert compared == [item.sha256 for item in auth.keys]


async def test_a_known_caller_goes_on_under_its_name(auth: Auth) -> None:
    """The key itself goes no further."""
    endpoint = ScriptedEndpoint()
    sent: list[Any] = []
    await auth(Call(request_id="t", credential=WEB), sent.append, endpoint)
    [call] = endpoint.calls
    assert (call.client_id, call.credential) == ("web", None)
    assert sent == list(ANSWER)


async def test_an_unknown_caller_goes_nowhere(auth: Auth) -> None:
    """Nothing behind the middleware is reached."""
    endpoint = ScriptedEndpoint()
    with pytest.raises(Unauthorized):
        await auth(Call(request_id="t", credential="wrong"), ignore, endpoint)
    assert endpoint.calls == []


def test_neither_key_nor_hash_shows_in_a_repr(auth: Auth) -> None:
    """What is printed by accident opens nothing."""
    shown = repr(auth) + repr(Call(request_id="t", credential=WEB))
    assert "web" in shown
    assert WEB not in shown
    assert hashlib.sha256(WEB.encode()).hexdigest() not in shown


async def test_a_key_that_was_found_good_is_not_looked_up_a_second_time(
    auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks first, the chain again; a key that only looks the same is another one, and is looked up."""
    hashed: list[bytes] = []
    sha256 = hashlib.sha256

    def note(data: bytes) -> Any:
        hashed.append(data)
        return sha256(data)

    monkeypatch.setattr("middleware.auth.hashlib.sha256", note)
    for key, count in ((WEB, 1), ("".join([*WEB]), 2)):
        hashed.clear()
        auth.authenticate(WEB)
        endpoint = ScriptedEndpoint()
        await auth(Call(request_id="r", credential=key), ignore, endpoint)
        assert [call.client_id for call in endpoint.calls] == ["web"]
        assert len(hashed) == count


async def test_what_was_found_out_of_one_call_is_not_believed_of_another(auth: Auth) -> None:
    """Neither with another key, nor with none, nor of the next call with the same."""
    for credential in (None, "", "wrong", CLI):
        auth.authenticate(WEB)
        endpoint = ScriptedEndpoint()
        with suppress(Unauthorized):
            await auth(Call(request_id="r", credential=credential), ignore, endpoint)
        assert [call.client_id for call in endpoint.calls] == (["cli"] if credential == CLI else [])
        with pytest.raises(Unauthorized):
            await auth(Call(request_id="r", credential=None), ignore, endpoint)
