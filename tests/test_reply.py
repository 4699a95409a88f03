"""Replies: golden bytes written by hand, round trips, damage, versions of the future."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entityq.envelope import UnknownFormat
from entityq.errors import MalformedMessage, PayloadTooLarge
from entityq.reply import MAX_BYTES, Outcome, Reply, decode_reply

GOLDEN = [
    (Reply(7, Outcome.SUCCESS, "", b"\x0a"), b"\x94\x01\x00\xa0\xc4\x01\x0a"),
    (Reply(7, Outcome.FAILURE, "NoFunds", b"\x80"), b"\x94\x01\x01\xa7NoFunds\xc4\x01\x80"),
    (Reply(7, Outcome.DEFECT, "EntityDefect", b""), b"\x94\x01\x02\xacEntityDefect\xc4\x00"),
    (Reply(7, Outcome.INTERRUPTED, "Interrupted", b"\xc0"), b"\x94\x01\x03\xabInterrupted\xc4\x01\xc0"),
]


@pytest.mark.parametrize(("reply", "data"), GOLDEN)
def test_golden_bytes(reply: Reply, data: bytes) -> None:
    assert reply.encode() == data
    assert decode_reply(7, data) == reply


REPLIES = st.builds(
    Reply, st.integers(0, 2**63 - 1), st.sampled_from(Outcome), st.text(max_size=20), st.binary(max_size=300)
)


@settings(deadline=None)
@given(REPLIES, st.integers(0, 9))
def test_round_trip_whatever_the_request_id(reply: Reply, other: int) -> None:
    data = reply.encode()
    assert decode_reply(reply.request_id, data) == reply
    assert decode_reply(other, data).encode() == data


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=40), st.sampled_from([b"", b"\x94\x01", b"\x94\x01\x00", b"\x94"]))
def test_arbitrary_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    with suppress(MalformedMessage, UnknownFormat, PayloadTooLarge):
        decode_reply(1, start + data)


@pytest.mark.parametrize("data", [b"\x94\x02\x00\xa0\xc4\x00", b"\x95\x03\xc1", b"\x91\x7f"])
def test_versions_of_the_future_are_no_damage(data: bytes) -> None:
    with pytest.raises(UnknownFormat, match="The reply has the format version"):
        decode_reply(1, data)


@pytest.mark.parametrize(
    "data",
    [
        *(GOLDEN[1][1][:size] for size in range(len(GOLDEN[1][1]))),
        b"\x94\x00\x00\xa0\xc4\x00",
        b"\x94\x01\x04\xa0\xc4\x00",  # an outcome that there is not
        b"\x94\x01\xc2\xa0\xc4\x00",
        b"\x94\x01\x00\xc0\xc4\x00",
        b"\x94\x01\x00\xa0\xa0",
        b"\x94\x01\x00\xa0\xc4\x00\xc0",
        b"\x93\x01\x00\xa0",
    ],
)
def test_damage_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="The reply cannot be decoded"):
        decode_reply(1, data)


def test_size_is_bounded_by_the_largest_setting() -> None:
    largest = Reply(1, Outcome.FAILURE, "F" * 200, b"x" * 16 * 1024**2)
    assert decode_reply(1, largest.encode()) == largest
    with pytest.raises(PayloadTooLarge, match="The reply"):
        decode_reply(1, b"\x94\x01" + b"\xc1" * MAX_BYTES)
