"""Where messages go: addresses, shards, and the hashes that place them. All formats here are frozen."""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from entityq.errors import MalformedMessage

MAX_ID_BYTES = 512

_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """One entity: its type and its id.

    Raises MalformedMessage for a type that is no identifier (letters, digits, '_', '-', '.'; at most 128),
    and for an id that is not 1 to 512 bytes of UTF-8 without control characters.
    """

    type: str
    id: str

    def __post_init__(self) -> None:
        if _TYPE.fullmatch(self.type) is None:
            raise MalformedMessage(
                f"{self.type!r} is not an entity type",
                advice="A type begins with a letter or '_'; up to 127 letters, digits, '_', '-', '.' follow.",
            )
        check_id(self.id)

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`Account/acct-1`: the type ends at the first slash, the id may hold more of them."""
        type_, slash, id_ = text.partition("/")
        if not slash:
            raise MalformedMessage(
                f"{text!r} is not an address", advice="Write type and id, as in Account/acct-1."
            )
        return cls(type_, id_)


def check_id(entity_id: str) -> None:
    """Raises MalformedMessage unless the id has 1 to 512 bytes of UTF-8 and no control characters."""
    try:
        size = len(entity_id.encode())
    except UnicodeEncodeError:
        raise MalformedMessage(f"The entity id {entity_id!r} is not valid Unicode") from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise MalformedMessage(f"An entity id has 1 to {MAX_ID_BYTES} bytes, this one has {size}")
    if _CONTROL.search(entity_id) is not None:
        raise MalformedMessage(f"The entity id {entity_id!r} has control characters")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One part of a shard group: the unit that a runner leases."""

    group: str
    number: int

    def __str__(self) -> str:
        return f"{self.group}:{self.number}"


def entity_hash(entity_id: str) -> int:
    """Unsigned 64 bits. Frozen: the big-endian BLAKE2b-64 of the UTF-8 id."""
    return int.from_bytes(hashlib.blake2b(entity_id.encode(), digest_size=8).digest())


def shard_number(hash_: int, count: int) -> int:
    """Which shard of a group of `count` shards; `hash_` is the unsigned hash. Frozen: modulo."""
    return hash_ % count


def signed64(hash_: int) -> int:
    """The unsigned 64-bit hash as a Postgres bigint with the same bits."""
    return hash_ - (1 << 64) if hash_ >> 63 else hash_


def lock_class(schema: str, namespace: str, kind: str, name: str) -> int:
    """The first key of an advisory lock, signed 32 bits. Frozen: BLAKE2b over the length-prefixed parts."""
    digest = hashlib.blake2b(length_prefixed(schema, namespace, kind, name)).digest()
    return int.from_bytes(digest[:4], signed=True)


def length_prefixed(*parts: str) -> bytes:
    """The UTF-8 parts, each after its length in 4 bytes, big endian: different parts give different bytes.

    Frozen. Raises MalformedMessage for text that is not valid Unicode.
    """
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError as error:
        raise MalformedMessage(f"{error.object!r} is not valid Unicode") from None
    return b"".join([len(part).to_bytes(4) + part for part in encoded])
