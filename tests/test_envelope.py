"""Envelopes: golden bytes written by hand, round trips, damage, versions of the future."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entityq.address import Address
from entityq.codec import Limits
from entityq.envelope import Envelope, UnknownFormat, decode_envelope
from entityq.errors import MalformedMessage, PayloadTooLarge

LIMITS = Limits()

FULL = Envelope(
    request_id=1,
    address=Address("Account", "a"),
    message="deposit",
    payload=b"\x80",
    persisted=True,
    client=2**63 - 1,
    primary_key="r",
    deadline_ms=3,
    headers={"h": "v"},
)
FULL_BYTES = (
    b"\x9c\x01\x01\xa7Account\xa1a\xa7deposit\xc4\x01\x80\xc3\xcf\x7f\xff\xff\xff\xff\xff\xff\xff"
    b"\xa7msgpack\xa1r\x03\x81\xa1h\xa1v"
)
SHORT = Envelope(1, Address("A", "a"), "m", b"", persisted=False, client=2)
SHORT_BYTES = b"\x9c\x01\x01\xa1A\xa1a\xa1m\xc4\x00\xc2\x02\xa7msgpack\xc0\xc0\x80"


@pytest.mark.parametrize(("envelope", "data"), [(FULL, FULL_BYTES), (SHORT, SHORT_BYTES)])
def test_golden_bytes(envelope: Envelope, data: bytes) -> None:
    assert envelope.encode() == data
    assert decode_envelope(data, LIMITS) == envelope


TEXT = st.text(max_size=10)
IDS = st.integers(0, 2**63 - 1)
ENVELOPES = st.builds(
    Envelope,
    request_id=IDS,
    address=st.builds(
        Address,
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True),
        st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=10),
    ),
    message=TEXT,
    payload=st.binary(max_size=300),
    persisted=st.booleans(),
    client=IDS,
    content_type=TEXT,
    primary_key=st.none() | TEXT,
    deadline_ms=st.none() | IDS,
    headers=st.dictionaries(TEXT, TEXT, max_size=5),
)


@settings(deadline=None)
@given(ENVELOPES)
def test_round_trip(envelope: Envelope) -> None:
    data = envelope.encode()
    assert decode_envelope(data, LIMITS) == envelope
    assert decode_envelope(data, LIMITS).encode() == data


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x9c\x01", b"\x9c", b"\x9c\x01\x01\xa1A\xa1a\xa1m"]))
def test_arbitrary_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    with suppress(MalformedMessage, UnknownFormat, PayloadTooLarge):
        decode_envelope(start + data, LIMITS)


@settings(deadline=None, max_examples=500)
@given(ENVELOPES, st.data())
def test_damaged_bytes_are_read_or_refused(envelope: Envelope, draw: st.DataObject) -> None:
    data = bytearray(envelope.encode())
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    with suppress(MalformedMessage, UnknownFormat, PayloadTooLarge):
        decode_envelope(bytes(data), LIMITS)


@pytest.mark.parametrize("size", range(len(SHORT_BYTES)))
def test_cut_bytes_are_refused(size: int) -> None:
    with pytest.raises(MalformedMessage, match="The envelope cannot be decoded"):
        decode_envelope(SHORT_BYTES[:size], LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"\x9c\x02" + SHORT_BYTES[2:],
        b"\x92\x7f\xc1",  # whatever follows
        b"\x9f\x02" + b"\xd4\x09\x00" * 14,
    ],
)
def test_versions_of_the_future_are_no_damage(data: bytes) -> None:
    with pytest.raises(UnknownFormat, match="version"):
        decode_envelope(data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"\x9c\x00" + SHORT_BYTES[2:],  # there was no version before 1
        b"\x8c\x02",
        b"\xdc\x00\x0c\x01" + SHORT_BYTES[2:],
        b"\x9b\x01" + SHORT_BYTES[2:-1],  # 11 fields
        b"\x9d\x01" + SHORT_BYTES[2:] + b"\xc0",  # 13 fields
        SHORT_BYTES + b"\xc0",
        b"\x9c\xff" + SHORT_BYTES[2:],
    ],
)
def test_other_starts_are_damage(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_envelope(data, LIMITS)


def replaced(place: int, field: bytes) -> bytes:
    fields = [b"\x01", b"\x01", b"\xa1A", b"\xa1a", b"\xa1m", b"\xc4\x00"]
    fields += [b"\xc2", b"\x02", b"\xa1j", b"\xc0", b"\xc0", b"\x80"]
    fields[place] = field
    return b"\x9c" + b"".join(fields)


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (1, b"\xc3"),  # a bool is no number
        (1, b"\xff"),  # below 0
        (1, b"\xcf\x80" + b"\0" * 7),  # above 63 bits
        (1, b"\xcb" + b"\0" * 8),
        (2, b"\x01"),
        (2, b"\xa11"),  # no entity type
        (3, b"\xa0"),  # no entity id
        (3, b"\xa1\n"),
        (3, b"\xc4\x01a"),
        (4, b"\xc0"),
        (5, b"\xa1x"),  # text is no payload
        (6, b"\x01"),
        (7, b"\xc2"),
        (8, b"\xc0"),
        (9, b"\x01"),
        (10, b"\xa11"),
        (10, b"\xff"),
        (11, b"\x90"),
        (11, b"\x81\xa1a\x01"),
        (11, b"\x81\xc4\x01a\xa1b"),
        (11, b"\x81\xa1a\x90"),
        (11, b"\xd4\x01x"),
    ],
)
def test_fields_of_another_type_are_refused(place: int, field: bytes) -> None:
    assert decode_envelope(replaced(0, b"\x01"), LIMITS).message == "m"
    with pytest.raises(MalformedMessage):
        decode_envelope(replaced(place, field), LIMITS)


def test_size_of_the_payload_is_bounded() -> None:
    small = Limits(max_bytes=100)
    largest = Envelope(1, Address("A", "a"), "m", b"x" * 100, persisted=True, client=2).encode()
    assert len(decode_envelope(largest, small).payload) == 100
    above = Envelope(1, Address("A", "a"), "m", b"x" * 101, persisted=True, client=2).encode()
    with pytest.raises(PayloadTooLarge, match="The payload has 101 bytes, the limit is 100"):
        decode_envelope(above, small)
    with pytest.raises(PayloadTooLarge, match="The envelope"):
        decode_envelope(b"\x9c\x01" + b"\xc1" * 70_000, small)  # not even read


def test_what_an_envelope_has_besides_its_payload_is_bounded() -> None:
    address = Address("A", "a" * 512)
    many = {str(number): "" for number in range(65)}
    with pytest.raises(MalformedMessage, match="at most 64 headers, not 65"):
        Envelope(1, address, "m", b"", persisted=True, client=2, headers=many).encode()
    with pytest.raises(PayloadTooLarge, match="Primary key and headers"):
        Envelope(1, address, "m", b"", persisted=True, client=2, primary_key="k" * 65_536).encode()
    many.popitem()
    full = Envelope(1, address, "m", b"x" * LIMITS.max_bytes, True, 2, "msgpack", "k" * 60_000, 3, many)
    assert decode_envelope(full.encode(), LIMITS) == full


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="surrogates"):
        Envelope(1, Address("A", "a"), "m", b"", persisted=True, client=2, primary_key="\ud800").encode()
