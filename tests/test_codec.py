"""msgpack within limits: golden bytes written by hand from msgpack's specification, round trips, refusals."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from random import Random
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entityq.codec import Limits, pack, unpack, unpack_record
from entityq.errors import MalformedMessage, PayloadTooLarge

LIMITS = Limits()


class Colour(Enum):
    RED = "red"
    BLUE = "blue"
    PAIR = (1, 2)


class Level(IntEnum):
    LOW = 1


class Kind(StrEnum):
    A = "a"


def packed(value: object) -> bytes:
    return pack(value, LIMITS, "The payload")


def unpacked(data: bytes) -> Any:
    return unpack(data, LIMITS, "The payload")


GOLDEN: list[tuple[object, bytes]] = [
    (None, b"\xc0"),
    (True, b"\xc3"),
    (10, b"\x0a"),
    (-1, b"\xff"),
    (2**64 - 1, b"\xcf" + b"\xff" * 8),
    (-(2**63), b"\xd3\x80" + b"\0" * 7),
    (1.5, b"\xcb\x3f\xf8\0\0\0\0\0\0"),
    ("é", b"\xa2\xc3\xa9"),
    (b"\x00\xff", b"\xc4\x02\x00\xff"),
    ([1, "a"], b"\x92\x01\xa1a"),
    ({"b": 1, "a": []}, b"\x82\xa1b\x01\xa1a\x90"),
    (
        datetime(2026, 11, 23, 20, 5, 1, 250_000, timezone(timedelta(hours=2))),
        b"\xc7\x20\x012026-11-23T20:05:01.250000+02:00",
    ),
    (date(2026, 11, 23), b"\xc7\x0a\x022026-11-23"),
    (time(20, 5), b"\xd7\x0320:05:00"),
    (timedelta(days=-1, microseconds=1), b"\xc7\x0c\x04-86399999999"),
    (Decimal("1.00"), b"\xd6\x051.00"),
    (UUID(int=1), b"\xd8\x06" + b"\0" * 15 + b"\x01"),
    ({3, 1, 2}, b"\xd6\x07\x93\x01\x02\x03"),
    ({2: "b", 1: "a"}, b"\xc7\x07\x08\x94\x01\xa1a\x02\xa1b"),
    (set[int](), b"\xd4\x07\x90"),
]


@pytest.mark.parametrize(("value", "data"), GOLDEN)
def test_golden_bytes(value: object, data: bytes) -> None:
    assert packed(value) == data
    assert unpacked(data) == value


@pytest.mark.parametrize(
    ("value", "same"),
    [
        ((1, (2,)), [1, [2]]),
        (frozenset({2, 1}), {1, 2}),
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
        (Colour.RED, "red"),
        (Colour.PAIR, [1, 2]),
        (Level.LOW, 1),
        (Kind.A, "a"),
        ({Kind.A: 1}, {"a": 1}),
        ({Colour.RED: [Colour.BLUE]}, {"red": ["blue"]}),
        ({Colour.PAIR: 1}, {(1, 2): 1}),
        ({Level.LOW: 1}, {1: 1}),
    ],
)
def test_written_as(value: object, same: object) -> None:
    assert packed(value) == packed(same)


def test_timestamps_of_others_are_read_as_utc() -> None:
    # Extension -1 with 32 bits of seconds; 1_795_464_301 is 2026-11-23T20:05:01Z.
    data = b"\xd6\xff" + (1_795_464_301).to_bytes(4)
    assert unpacked(data) == datetime(2026, 11, 23, 20, 5, 1, tzinfo=UTC)


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
HASHABLE = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.datetimes(timezones=st.none() | OFFSETS)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids()
    | st.tuples(st.integers(0, 9), st.text(max_size=2))
)


def containers(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.frozensets(st.frozensets(HASHABLE, max_size=2), max_size=2)
    )


VALUES: st.SearchStrategy[object] = st.recursive(HASHABLE, containers, max_leaves=12)


def plain(value: object) -> object:
    """The value as reading without annotations gives it."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in cast("dict[object, object]", value).items()}
    return value


@settings(deadline=None)
@given(VALUES)
def test_round_trip(value: object) -> None:
    data = packed(value)
    back = unpacked(data)
    assert back == plain(value)
    assert packed(back) == data


@settings(deadline=None)
@given(st.dictionaries(HASHABLE, st.integers(0, 9), max_size=6), st.randoms())
def test_maps_with_other_keys_and_sets_have_one_form(mapping: dict[Any, int], random: Random) -> None:
    keys = list(mapping)
    random.shuffle(keys)
    assert packed(set(keys)) == packed(set(mapping))
    if not all(isinstance(key, str) for key in keys):
        assert packed({key: mapping[key] for key in keys}) == packed(mapping)


def nested(depth: int, wrap: Callable[[object], object]) -> object:
    value: object = 0
    for _ in range(depth):
        value = wrap(value)
    return value


def itself() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("nan"), "finite"),
        ({"a": [float("inf")]}, "finite"),
        ({"a": float("-inf")}, "finite"),
        (Decimal("NaN"), "finite"),
        ([Decimal("-Infinity")], "finite"),
        (2**64, "out of range|too big|too large"),
        ({"a": -(2**63) - 1}, "out of range|too big|too large"),
        ("\ud800", "surrogates"),
        ({"\udc00": 1}, "surrogates"),
        ([object()], "object is not a type"),
        ({"a": pytest}, "module is not a type"),
        (range(3), "range is not a type"),
        (1j, "complex is not a type"),
        ({Colour.RED: 1, "red": 2}, "two keys"),
        ({Colour.PAIR: 1, (1, 2): 2}, "two keys"),
        (itself(), "levels deep"),
    ],
)
def test_what_cannot_be_written(value: object, why: str) -> None:
    with pytest.raises(MalformedMessage, match=f"The payload cannot be encoded.*({why})"):
        packed(value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "incomplete"),
        (b"\xc1", ""),  # the one byte that msgpack never uses
        (b"\x0a\x0a", "extra data"),
        (b"\xa2a", "incomplete"),
        (b"\xa1\xff", "utf-8"),
        (b"\xdd\xff\xff\xff\xff", ""),  # an array that claims 4 G elements
        (b"\xdf\xff\xff\xff\xff", ""),
        (b"\xc6\xff\xff\xff\xff", ""),
        (b"\x81\x01\x02", "not allowed for map key"),
        (b"\x81\x90\x02", ""),
        (b"\xd4\x09\x00", "extension type 9 is unknown"),
        (b"\xd4\x00\x00", "extension type 0 is unknown"),
        (b"\xd4\xfe\x00", "extension type -2 is unknown"),
        (b"\xd4\x06\x00", "16"),  # an UUID of one byte
        (b"\xd4\x01x", "isoformat"),
        (b"\xd4\x02x", "isoformat"),
        (b"\xd4\x03x", "isoformat"),
        (b"\xd4\x04x", "invalid literal"),
        (b"\xc7\x18\x04" + b"9" * 24, ""),  # more days than a timedelta has
        (b"\xd4\x05x", "ConversionSyntax"),
        (b"\xc7\x03\x05NaN", "finite"),
        (b"\xd4\x07\x01", "as an array"),
        (b"\xd4\x08\x80", "as an array"),
        (b"\xd5\x07\x91\x80", "unhashable"),
        (b"\xd5\x08\x91\x01", "without a value"),
        (b"\xd7\xff" + b"\xff" * 8, ""),  # a timestamp with too many nanoseconds
        (b"\xc7\x0c\xff" + b"\0" * 4 + b"\x7f" + b"\xff" * 7, ""),  # of a far year
        (b"\x91" * 5_000 + b"\xc0", "too deep"),
    ],
)
def test_what_cannot_be_read(data: bytes, why: str) -> None:
    with pytest.raises(MalformedMessage, match=f"The payload cannot be decoded.*{why}"):
        unpacked(data)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=64))
@example(b"\xd6\xff\0\0\0\0")
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(MalformedMessage):
        unpacked(data)


@settings(deadline=None, max_examples=300)
@given(VALUES, st.data())
def test_damaged_bytes_are_read_or_refused(value: object, draw: st.DataObject) -> None:
    data = bytearray(packed(value))
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    with suppress(MalformedMessage):
        unpacked(bytes(data))


def test_size_is_checked_before_reading() -> None:
    small = Limits(max_bytes=10)
    assert unpack(pack("x" * 9, small, "The state"), small, "The state") == "x" * 9
    with pytest.raises(PayloadTooLarge, match="The state has 11 bytes, the limit is 10"):
        pack("x" * 10, small, "The state")
    with pytest.raises(PayloadTooLarge, match="The state has 11 bytes, the limit is 10"):
        unpack(b"\xc1" * 11, small, "The state")  # no msgpack at all


WRAPS: list[Callable[[object], object]] = [
    lambda value: [value],
    lambda value: {"k": value},
    lambda value: (value, 1),
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_depth_is_bounded_both_ways(wrap: Callable[[object], object]) -> None:
    deepest = nested(64, wrap)
    assert unpacked(packed(deepest)) == plain(deepest)
    with pytest.raises(MalformedMessage, match="more than 64 levels deep"):
        packed(wrap(deepest))
    too_deep = pack(wrap(deepest), Limits(max_depth=100), "The payload")
    with pytest.raises(MalformedMessage, match="more than 64 levels deep"):
        unpacked(too_deep)


def test_depth_is_counted_through_keys_and_sets() -> None:
    limits = Limits(max_depth=2)
    with pytest.raises(MalformedMessage, match="levels deep"):
        pack({(1, (2,)): 0}, limits, "The payload")
    with pytest.raises(MalformedMessage, match="levels deep"):
        unpack(packed({(1, (2,)): 0}), limits, "The payload")


EXTENDING: list[Callable[[object], object]] = [
    lambda value: frozenset([value]),
    lambda value: {1: value},
]


@pytest.mark.parametrize("wrap", EXTENDING)
def test_nesting_of_sets_and_other_maps_is_bounded_both_ways(wrap: Callable[[object], object]) -> None:
    deepest = nested(16, wrap)
    data = packed(deepest)
    assert unpacked(data) == deepest
    with pytest.raises(MalformedMessage, match="16 levels deep in one another"):
        packed(wrap(deepest))
    code = data[2] if data[0] == 0xC7 else data[1]
    body = b"\x91" + data if code == 7 else b"\x92\x01" + data
    with pytest.raises(MalformedMessage, match="16 levels deep in one another"):
        unpacked(b"\xc7" + bytes([len(body), code]) + body)


def test_hostile_nesting_of_extensions_does_not_crash() -> None:
    data = b"\x90"
    while len(data) < 50_000:  # thousands of levels
        data = b"\xc9" + (len(data) + 1).to_bytes(4) + b"\x07\x91" + data
    with pytest.raises(MalformedMessage, match="16 levels deep in one another"):
        unpacked(data)


MANY: list[Callable[[int], object]] = [
    lambda count: [list[int]() for _ in range(count)],
    lambda count: [dict[str, int]() for _ in range(count)],
    lambda count: {str(number): () for number in range(count)},
    lambda count: {number: list[int]() for number in range(count)},
    lambda count: [{number} for number in range(count)],
]


@pytest.mark.parametrize("many", MANY)
def test_containers_are_counted_both_ways(many: Callable[[int], object]) -> None:
    assert len(unpacked(packed(many(9_999)))) == 9_999
    with pytest.raises(MalformedMessage, match="more than 10,000 lists, maps and sets"):
        packed(many(10_000))
    data = pack(many(10_000), Limits(max_containers=20_000), "The payload")
    with pytest.raises(MalformedMessage, match="more than 10,000 lists, maps and sets"):
        unpacked(data)


def test_long_maps_with_other_keys_are_no_many_containers() -> None:
    mapping = {number: str(number) for number in range(50_000)}
    assert unpacked(packed(mapping)) == mapping


def test_equal_empty_containers_within_a_set_are_counted_once_each() -> None:
    assert unpacked(packed({(), ((),)})) == {(), ((),)}


def test_a_record_is_a_short_array() -> None:
    assert unpack_record(b"\x92\x01\x81\xa1a\xa1b", 100, "The envelope") == [1, {"a": "b"}]
    for data in (b"", b"\x01", b"\x80", b"\xdc\0\x01\x01", b"\x91", b"\x91\xd4\x07\x90", b"\x91\x01\x01"):
        with pytest.raises(MalformedMessage, match="The envelope cannot be decoded"):
            unpack_record(data, 100, "The envelope")
    with pytest.raises(PayloadTooLarge):
        unpack_record(b"\x90" * 101, 100, "The envelope")
