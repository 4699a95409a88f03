"""Addresses, shards and their hashes. The golden values were computed with coreutils' b2sum."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.address import Address, Shard, entity_hash, length_prefixed, lock_class, shard_number, signed64
from entityq.errors import MalformedMessage

TEXT = st.text(max_size=8)


@pytest.mark.parametrize(
    ("entity_id", "hash_", "shard"),
    [
        ("acct-1", 0x2DF37E62254FB358, 60),  # printf acct-1 | b2sum -l 64
        ("é", 0xCB1ABF8BEFF3192F, 43),
        ("0", 0x842B7D9D43CDDF75, 89),
    ],
)
def test_golden_hash_and_shard(entity_id: str, hash_: int, shard: int) -> None:
    assert entity_hash(entity_id) == hash_
    assert shard_number(hash_, 100) == shard


def test_golden_lock_class() -> None:
    # printf '\0\0\0\7entityq\0\0\0\4bank\0\0\0\5group\0\0\0\7default' | b2sum: 88f2a35a...
    assert lock_class("entityq", "bank", "group", "default") == 0x88F2A35A - (1 << 32)
    assert lock_class("entityq", "bank", "member", "") == 0x609CDBCE


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_signed_hash_has_the_same_bits(hash_: int) -> None:
    assert struct.pack(">q", signed64(hash_)) == struct.pack(">Q", hash_)


@given(st.text(min_size=1, max_size=8), st.integers(min_value=1, max_value=10_000))
def test_shard_is_in_range(entity_id: str, count: int) -> None:
    assert 0 <= shard_number(entity_hash(entity_id), count) < count


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4))
def test_different_parts_give_different_input(left: list[str], right: list[str]) -> None:
    assert (length_prefixed(*left) == length_prefixed(*right)) == (left == right)


def test_parts_that_only_move_their_border_differ() -> None:
    assert length_prefixed("ab", "c") != length_prefixed("a", "bc")
    assert lock_class("ab", "c", "k", "n") != lock_class("a", "bc", "k", "n")


def test_address_as_text() -> None:
    assert str(Address("Account", "acct-1")) == "Account/acct-1"
    assert Address.parse("Account/acct-1") == Address("Account", "acct-1")
    assert Address.parse("Account/a/b") == Address("Account", "a/b")
    assert str(Shard("default", 7)) == "default:7"


@given(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", fullmatch=True),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128),
)
def test_address_survives_its_text(type_: str, entity_id: str) -> None:
    address = Address(type_, entity_id)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("entity_id", ["x" * 512, "é" * 256, " ", "a/b", "\u2028", "😀"])
def test_ids_that_are_allowed(entity_id: str) -> None:
    assert Address("A", entity_id).id == entity_id


@pytest.mark.parametrize(
    "entity_id", ["", "x" * 513, "é" * 257, "a\nb", "a\x00", "\x1f", "\x7f", "\x80", "\x9f", "\ud800", "a\n"]
)
def test_ids_that_are_refused(entity_id: str) -> None:
    with pytest.raises(MalformedMessage, match="id"):
        Address("A", entity_id)


@pytest.mark.parametrize("type_", ["", "1a", "-a", "a b", "a/b", "A\n", "é", "x" * 129])
def test_types_that_are_refused(type_: str) -> None:
    with pytest.raises(MalformedMessage, match="entity type"):
        Address(type_, "a")


@pytest.mark.parametrize("text", ["", "Account", "/a", "Account/"])
def test_text_that_is_no_address(text: str) -> None:
    with pytest.raises(MalformedMessage):
        Address.parse(text)


def test_hashed_text_must_be_unicode() -> None:
    with pytest.raises(MalformedMessage, match="Unicode"):
        lock_class("entityq", "\udc00", "group", "default")
