"""Serializers and compressions of kombu: round trips, the accept list, pickle never, bombs."""

import lzma
import pickle
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.compression import compress
from kombu.serialization import registry

from entityq.codec import Limits, pack
from entityq.errors import MalformedMessage, PayloadTooLarge, UnsafeConfiguration
from entityq.serializer import Serializer

ALL = frozenset({"msgpack", "json"})
LIMITS = Limits(max_bytes=10_000)
COMPRESSIONS = ["zlib", "gzip", "bzip2", "lzma", "xz"]
CONTENT_TYPES = [name + end for name in ("msgpack", "json") for end in ("", *("+" + c for c in COMPRESSIONS))]


def serializer(content_type: str, accept: frozenset[str] = ALL, limits: Limits = LIMITS) -> Serializer:
    return Serializer(content_type, accept, limits)


def decoded(data: bytes, content_type: str, accept: frozenset[str] = ALL) -> object:
    return serializer("msgpack", accept | {"msgpack"}).decode(data, content_type, "The payload")


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False)
)
VALUES: st.SearchStrategy[object] = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@settings(deadline=None, max_examples=30)
@given(VALUES)
def test_round_trip(content_type: str, value: object) -> None:
    data = serializer(content_type).encode(value, "The payload")
    assert decoded(data, content_type) == value


def test_msgpack_is_the_codec() -> None:
    assert serializer("msgpack").encode({"a": {1}}, "The payload") == pack({"a": {1}}, LIMITS, "The payload")


def test_json_is_kombus() -> None:
    """What is in Redis and Postgres can be read with other tools."""
    value = {"a": [1, 1.5, None, "é"], "amount": Decimal("1.0")}
    assert serializer("json").encode(value, "The payload") == (
        b'{"a": [1, 1.5, null, "\\u00e9"], "amount": {"__type__": "decimal", "__value__": "1.0"}}'
    )


@pytest.mark.parametrize(
    "value",
    [
        {1: "a"},  # json would make the key text
        {1: "a", "1": "b"},  # and lose one of these
        {"a": {1, 2}},
        {"__type__": "bytes", "__value__": "x"},  # kombu would read it as bytes
        {"__type__": "x", "__value__": 1},
        float("nan"),
        2**64,
        "\ud800",
        object(),
    ],
)
def test_a_value_that_json_would_change_is_refused(value: object) -> None:
    with pytest.raises(MalformedMessage, match="The payload cannot be"):
        serializer("json").encode(value, "The payload")


@pytest.mark.parametrize("name", ["pickle", "yaml"])
@pytest.mark.parametrize("end", ["", "+zlib"])
def test_pickle_and_yaml_are_refused_even_when_listed(name: str, end: str) -> None:
    with pytest.raises(UnsafeConfiguration, match=f"{name} is refused"):
        serializer(name + end, frozenset({name}))
    with pytest.raises(UnsafeConfiguration, match=f"{name} is refused"):
        serializer("msgpack", frozenset({"msgpack", name + end}))


def test_pickle_is_refused_under_another_name() -> None:
    registry.register("friendly", pickle.dumps, pickle.loads, "application/x-python-serialize", "binary")
    try:
        with pytest.raises(UnsafeConfiguration, match="friendly is refused"):
            serializer("friendly", frozenset({"friendly"}))
    finally:
        registry.name_to_type.pop("friendly")
        registry.type_to_name["application/x-python-serialize"] = "pickle"


class Armed:
    """Its pickle ends the test that reads it."""

    def __reduce__(self) -> tuple[type[SystemExit], tuple[str]]:
        return SystemExit, ("pickle was read",)


@pytest.mark.parametrize(
    "content_type", ["pickle", "application/x-python-serialize", "pickle+zlib", "yaml", ""]
)
def test_what_is_not_accepted_is_not_read(content_type: str) -> None:
    with pytest.raises(MalformedMessage, match="is not accepted here"):
        decoded(pickle.dumps(Armed()), content_type)


def test_a_serializer_that_is_not_listed_is_not_read() -> None:
    data = serializer("json").encode({"a": 1}, "The payload")
    with pytest.raises(MalformedMessage, match="json is not accepted here"):
        decoded(data, "json", frozenset())
    only_json = serializer("json", frozenset({"json+zlib"}))
    assert only_json.decode(data, "json", "The payload") == {"a": 1}
    with pytest.raises(MalformedMessage, match="msgpack is not accepted here"):
        only_json.decode(b"\x01", "msgpack", "The payload")


def test_what_cannot_be_configured() -> None:
    with pytest.raises(UnsafeConfiguration, match="json is not one of accept"):
        serializer("json", frozenset({"msgpack"}))
    with pytest.raises(UnsafeConfiguration, match="kombu knows no serializer 'cbor'"):
        serializer("msgpack", frozenset({"msgpack", "cbor"}))
    with pytest.raises(UnsafeConfiguration, match="'zstd' is no compression"):
        serializer("msgpack+zstd")
    with pytest.raises(MalformedMessage, match="'zstd' is no compression"):
        decoded(b"", "json+zstd")


@pytest.fixture
def hexadecimal() -> Iterator[str]:
    """A serializer of the user's own: the packed bytes in hexadecimal."""
    registry.register(
        "hexadecimal",
        lambda value: pack(value, LIMITS, "x").hex(),
        lambda data: Serializer("msgpack", ALL, LIMITS).decode(bytes.fromhex(data.decode()), "msgpack", "x"),
        "application/x-hexadecimal",
    )
    yield "hexadecimal"
    registry.unregister("hexadecimal")


def test_a_serializer_that_the_user_registered(hexadecimal: str) -> None:
    own = serializer(hexadecimal, frozenset({hexadecimal}))
    assert own.encode({1: {2}}, "The payload") == pack({1: {2}}, LIMITS, "x").hex().encode()
    assert own.decode(own.encode({1: {2}}, "The payload"), hexadecimal, "The payload") == {1: {2}}
    with pytest.raises(MalformedMessage, match="cannot be decoded by hexadecimal"):
        own.decode(b"xyz", hexadecimal, "The payload")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b'"\xff"',
        b"NaN",
        b"1e999",
        b"18446744073709551616",
        b"9" * 5_000,
        b'"\\ud800"',
        b'{"__type__": "uuid", "__value__": {"int": 1, "hex": "x"}}',
        b'{"__type__": "date", "__value__": 1}',
        b'{"__type__": "nothing", "__value__": 1}',
        b"[" * 65 + b"]" * 65,
        b"[" * 5_000 + b"]" * 5_000,
        b"[" + b",".join([b"[]"] * 3_000) + b"]",
    ],
)
def test_json_that_cannot_be_read(data: bytes) -> None:
    reader = Serializer("json", ALL, Limits(max_bytes=10_000, max_containers=2_000))
    with pytest.raises(MalformedMessage, match="The payload cannot be"):
        reader.decode(data, "json", "The payload")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.sampled_from(CONTENT_TYPES) | st.text(max_size=20))
def test_arbitrary_bytes_are_read_or_refused(data: bytes, content_type: str) -> None:
    with suppress(MalformedMessage, PayloadTooLarge):
        decoded(data, content_type)


@settings(deadline=None, max_examples=300)
@given(VALUES, st.sampled_from(CONTENT_TYPES), st.data())
def test_damaged_bytes_are_read_or_refused(value: object, content_type: str, draw: st.DataObject) -> None:
    data = bytearray(serializer(content_type).encode(value, "The payload"))
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    with suppress(MalformedMessage, PayloadTooLarge):
        decoded(bytes(data), content_type)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_bomb_does_not_go_off(compression: str) -> None:
    bomb, _ = compress(bytes(64_000_000), compression)
    reader = Serializer("msgpack", ALL, Limits(max_bytes=100_000))
    tracemalloc.start()
    try:
        with pytest.raises(
            PayloadTooLarge, match="The payload has more than 100,000 bytes when decompressed"
        ):
            reader.decode(bomb, f"msgpack+{compression}", "The payload")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000


def test_an_xz_stream_cannot_claim_the_memory() -> None:
    data = lzma.compress(b"\x01", preset=9)  # reading it takes 65 MiB
    with pytest.raises(MalformedMessage, match="Memory usage limit"):
        decoded(data, "msgpack+xz")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_bytes_that_are_cut_or_go_on_are_refused(compression: str) -> None:
    content_type = f"msgpack+{compression}"
    data = serializer(content_type).encode("x" * 100, "The payload")
    for damaged in (data[:-1], data[:1], b"", data + b"x", data + data):
        with pytest.raises(MalformedMessage, match=f"cannot be decompressed by {compression}"):
            decoded(damaged, content_type)


def test_sizes_are_bounded_at_the_sender_before_and_after() -> None:
    noise = random.Random(1).randbytes(9_990)
    assert decoded(serializer("msgpack").encode(noise, "The payload"), "msgpack") == noise
    with pytest.raises(PayloadTooLarge, match="The payload"):
        serializer("msgpack+zlib").encode(random.Random(1).randbytes(9_997), "The payload")  # it grows
    for content_type in ("msgpack+zlib", "json", "json+zlib"):
        with pytest.raises(PayloadTooLarge, match="The payload"):
            serializer(content_type).encode("x" * 10_000, "The payload")
    for content_type in ("msgpack", "msgpack+zlib", "json", "json+zlib"):
        with pytest.raises(PayloadTooLarge, match="The payload has 10,001 bytes"):
            decoded(b"x" * 10_001, content_type)


def test_the_largest_payload_is_read_back_with_each_compression() -> None:
    for compression in COMPRESSIONS:
        content_type = f"msgpack+{compression}"
        data = serializer(content_type).encode("x" * 9_997, "The payload")  # 3 bytes of header
        assert decoded(data, content_type) == "x" * 9_997
