"""Key digests. The golden value was computed with coreutils' b2sum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.address import Address
from entityq.errors import MalformedMessage
from entityq.primary_key import key_digest

NAMES = st.sampled_from(["A", "AA", "AAA"])
KEYS = st.text("Aé", max_size=3)


def test_golden_digest() -> None:
    # printf '\0\0\0\4bank\0\0\0\7Account\0\0\0\6acct-1\0\0\0\7deposit\0\0\0\3r-1' | b2sum -l 128
    digest = key_digest("bank", Address("Account", "acct-1"), "deposit", "r-1")
    assert digest.hex() == "82364d0eccb91e783275eef3365988a7"


@given(st.tuples(NAMES, NAMES, NAMES, NAMES, KEYS), st.tuples(NAMES, NAMES, NAMES, NAMES, KEYS))
def test_equal_only_for_the_same_scope_and_key(
    left: tuple[str, str, str, str, str], right: tuple[str, str, str, str, str]
) -> None:
    def digest(parts: tuple[str, str, str, str, str]) -> bytes:
        namespace, type_, entity_id, message, key = parts
        return key_digest(namespace, Address(type_, entity_id), message, key)

    assert (digest(left) == digest(right)) == (left == right)


def test_long_keys_are_digested() -> None:
    address = Address("Account", "a")
    assert key_digest("bank", address, "m", "k" * 100_000) != key_digest("bank", address, "m", "k" * 100_001)


def test_a_key_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="Unicode"):
        key_digest("bank", Address("Account", "a"), "m", "\ud800")
