"""Tokens of signals: golden vectors, and nobody makes one without the key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq import MalformedMessage
from entityq.codec import Limits
from entityq.signal_token import MAX_NAME_BYTES, SignalPlace, read_signal_token, signal_token
from entityq.signal_value import decode_signal, encode_signal, signal_schema

KEY = bytes(range(32))

names = st.text(min_size=1, max_size=30).filter(lambda name: name.isprintable() and len(name.encode()) <= 128)
places = st.builds(SignalPlace, st.integers(0, 2**63 - 1), names)
keys = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize(
    ("place", "token"),
    [
        (SignalPlace(1, "approval"), "AAAAAAAAAAH4uFjhNtEwPr86euLAP9HiYXBwcm92YWw"),
        (SignalPlace(2**63 - 1, "ütf ✓"), "f__________aSywY8yUAwvgUR9LKJ7KHw7x0ZiDinJM"),
    ],
)
def test_golden(place: SignalPlace, token: str) -> None:
    assert signal_token(KEY, place) == token


@given(keys, places)
def test_a_token_is_read_as_it_was_made(key: bytes, place: SignalPlace) -> None:
    token = signal_token(key, place)
    assert read_signal_token(key, token) == place
    assert token.isascii()
    assert not set(token) & set("/+= \n&?#")


@given(keys, keys, places)
def test_another_key_makes_another_token(key: bytes, other: bytes, place: SignalPlace) -> None:
    if key != other:
        with pytest.raises(MalformedMessage):
            read_signal_token(other, signal_token(key, place))


@given(places, st.data())
def test_a_changed_token_is_refused(place: SignalPlace, data: st.DataObject) -> None:
    token = signal_token(KEY, place)
    at = data.draw(st.integers(0, len(token)))
    changed = token[:at] + data.draw(st.text(max_size=3)) + token[at + data.draw(st.integers(0, 2)) :]
    if changed != token:
        with pytest.raises(MalformedMessage):
            read_signal_token(KEY, changed)


@given(st.text(max_size=500))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        read_signal_token(KEY, text)


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME_BYTES + 1), "ü" * 65, "a\nb", "\x00", "\ud800"])
def test_names_are_bounded(name: str) -> None:
    with pytest.raises(MalformedMessage):
        signal_token(KEY, SignalPlace(1, name))


@given(
    st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
)
def test_values_come_as_they_were_sent(value: object) -> None:
    assert decode_signal(encode_signal(value, Limits()), signal_schema(object, "x")) == value
