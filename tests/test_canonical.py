"""The payload hash. The golden values were computed with coreutils' sha256sum over bytes written by hand."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from random import Random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entityq.canonical import payload_hash
from entityq.codec import Limits, pack, unpack
from entityq.errors import MalformedMessage

BERLIN = timezone(timedelta(hours=1))
NAIVE = datetime.fromisoformat("2026-11-23T00:00:00")


class Colour(Enum):
    RED = "red"


def hashed(value: object) -> bytes:
    return payload_hash({"value": value}, {})


def test_golden_hashes() -> None:
    # printf '\x01\x82\xa6amount\x0a\xa9reference\xa3r-1' | sha256sum
    amount = payload_hash({"reference": "r-1", "amount": 10}, {})
    assert amount.hex() == "a8a6b9e9e5cdaf47da69c0daea5f39aca1ba2c70399534f5fd55fe52f5300910"
    # printf '\x01\x80' | sha256sum
    assert payload_hash({}, {}).hex() == "3be90d393f91241448d7dceadad32d91c1c94f307805937b46ed01ea669c17c3"


def test_golden_form_of_each_kind() -> None:
    arguments: dict[str, object] = {
        "when": datetime(2026, 11, 23, 21, 5, tzinfo=BERLIN),
        "set": {3, 1, 2},
        "map": {"b": 1, "a": -0.0},
        "amount": Decimal("10.00"),
        "colour": Colour.RED,
        "numbers": (1, 2.0),
        "keys": {2: True, 1: None},
    }
    expected = (
        b"\x01\x87"
        b"\xa6amount\xd6\x051E+1"
        b"\xa6colour\xa3red"
        b"\xa4keys\xc7\x05\x08\x94\x01\xc0\x02\xc3"
        b"\xa3map\x82\xa1a\xcb\0\0\0\0\0\0\0\0\xa1b\x01"
        b"\xa7numbers\x92\x01\xcb\x40\0\0\0\0\0\0\0"
        b"\xa3set\xd6\x07\x93\x01\x02\x03"
        b"\xa4when\xc7\x19\x012026-11-23T20:05:00+00:00"
    )
    assert payload_hash(arguments, {}) == hashlib.sha256(expected).digest()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1, [2]], (1, (2,))),
        ({1, 2}, frozenset({2, 1})),
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        (Colour.RED, "red"),
        ({Colour.RED: 1}, {"red": 1}),
        (0.0, -0.0),
        ([{"a": -0.0}], [{"a": 0.0}]),
        (Decimal("1.0"), Decimal("1.00")),
        (Decimal(100), Decimal("1E+2")),
        (Decimal("0.000"), Decimal("-0")),
        (datetime(2026, 11, 23, 21, tzinfo=BERLIN), datetime(2026, 11, 23, 20, tzinfo=UTC)),
        (bytearray(b"x"), b"x"),
    ],
)
def test_equal_payloads(left: object, right: object) -> None:
    assert hashed(left) == hashed(right)


DIFFERENT: list[object] = [
    None,
    0,
    False,
    1,
    True,
    1.0,
    "1",
    b"1",
    Decimal(1),
    [1],
    {1},
    {"1": 1},
    {1: 1},
    [[1]],
    [],
    {},
    set[int](),
    "",
    Decimal("1." + "0" * 40 + "1"),  # beyond the precision of the decimal context
    Decimal("1." + "0" * 40 + "2"),
    NAIVE,
    datetime(2026, 11, 23, tzinfo=UTC),
    datetime(2026, 11, 23, tzinfo=BERLIN),
    timedelta(0),
    "2026-11-23",
    NAIVE.date(),
]


def test_different_payloads() -> None:
    assert len({hashed(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert len({payload_hash({name: value}, {}) for name in "ab" for value in (1, 2)}) == 4


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.datetimes(timezones=st.none() | st.just(BERLIN))
)
VALUES: st.SearchStrategy[object] = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
        | st.sets(ATOMS, max_size=3)
    ),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)


def shuffled(value: object, random: Random) -> object:
    """An equal value, its maps and sets made in another order."""
    if isinstance(value, dict):
        pairs = [(key, shuffled(item, random)) for key, item in cast("dict[object, object]", value).items()]
        random.shuffle(pairs)
        return dict(pairs)
    if isinstance(value, list):
        return [shuffled(item, random) for item in cast("list[object]", value)]
    if isinstance(value, set):
        items = list(cast("set[object]", value))
        random.shuffle(items)
        return set(items)
    return value


@settings(deadline=None)
@given(ARGUMENTS, st.randoms())
def test_order_of_maps_and_sets_does_not_count(arguments: dict[str, object], random: Random) -> None:
    other = {name: shuffled(arguments[name], random) for name in reversed(arguments)}
    assert payload_hash(other, {}) == payload_hash(arguments, {})


@settings(deadline=None)
@given(ARGUMENTS, ARGUMENTS)
def test_arguments_equal_to_their_default_do_not_count(
    arguments: dict[str, object], added: dict[str, object]
) -> None:
    """A deploy that adds optional arguments: old senders leave them out, new ones send the defaults."""
    new = {name: value for name, value in added.items() if name not in arguments}
    before = payload_hash(arguments, {})
    assert payload_hash(arguments, new) == before
    assert payload_hash({**arguments, **new}, new) == before


def test_only_the_same_value_is_the_default() -> None:
    assert payload_hash({"a": 1}, {"a": True}) == payload_hash({"a": 1}, {})
    assert payload_hash({"a": 1}, {"a": 1.0}) == payload_hash({"a": 1}, {})
    assert payload_hash({"a": {1: [2]}}, {"a": {1: (2,)}}) == payload_hash({}, {})
    assert payload_hash({"a": 2}, {"a": 1}) != payload_hash({}, {"a": 1})


@settings(deadline=None)
@given(ARGUMENTS)
def test_the_hash_survives_the_wire(arguments: dict[str, object]) -> None:
    data = pack(arguments, Limits(), "The payload")
    assert payload_hash(unpack(data, Limits(), "The payload"), {}) == payload_hash(arguments, {})


@settings(deadline=None)
@given(VALUES, VALUES)
def test_equal_hashes_only_of_equal_values(left: object, right: object) -> None:
    if hashed(left) == hashed(right):
        assert left == right


def test_what_cannot_be_hashed() -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in (
        float("nan"),
        Decimal("NaN"),
        object(),
        2**64,
        "\ud800",
        endless,
        {Colour.RED: 1, "red": 2},
    ):
        with pytest.raises(MalformedMessage, match="The payload cannot be encoded"):
            hashed(value)


def test_datetimes_at_the_ends_of_time() -> None:
    assert hashed(datetime.min.replace(tzinfo=BERLIN)) != hashed(datetime.min.replace(tzinfo=UTC))
    west = timezone(-timedelta(hours=1))
    assert hashed(datetime.max.replace(tzinfo=west)) != hashed(datetime.max.replace(tzinfo=UTC))
