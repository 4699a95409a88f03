"""Golden vectors of the stream entry."""

import pytest

from entityq.entry import Entry, decode_entry
from entityq.errors import MalformedMessage

ORDER = bytes.fromhex("01020304050607080000000000000001000000000000ffff")


def test_persisted_entry_is_frozen() -> None:
    entry = Entry(b"envelope", sender=0x0102030405060708, n=1, seq=65_535)
    assert entry.fields() == {b"e": b"envelope", b"o": ORDER}
    assert decode_entry(entry.fields()) == entry
    assert entry.persisted


def test_volatile_entry_has_no_order() -> None:
    entry = Entry(b"envelope")
    assert entry.fields() == {b"e": b"envelope"}
    assert decode_entry(entry.fields()) == entry
    assert not entry.persisted


def test_unknown_fields_are_left_to_later_versions() -> None:
    assert decode_entry({b"e": b"x", b"later": b"y"}) == Entry(b"x")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"o": ORDER},
        {b"e": b"x", b"o": b""},
        {b"e": b"x", b"o": ORDER + b"\0"},
        {b"e": b"x", b"o": bytes(24)},
    ],
)
def test_what_is_no_entry_is_refused(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode_entry(fields)
