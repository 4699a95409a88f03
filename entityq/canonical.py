"""The hash by which a repeat with a changed payload is told from a true repeat."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, cast

from entityq.codec import Limits, pack_any_size
from entityq.errors import MalformedMessage

# Frozen: the first byte of what is hashed. Another form gets another number, so that it equals no older one.
VERSION = b"\x01"

# Arguments are held to the limits where they are encoded.
_LIMITS = Limits(max_depth=500, max_containers=1 << 30)


def payload_hash(arguments: Mapping[str, object], defaults: Mapping[str, object]) -> bytes:
    """32 bytes, equal for equal payloads. The arguments are as validation left them, numbers as annotated.

    SHA-256 over the version and the packed map of the arguments, names sorted, those equal to their default
    left out. Equal are: maps and sets in any order, lists and tuples, an enum and its value, 0.0 and -0.0,
    decimals of one value (1.0 and 1.00), aware datetimes of one instant. Different are values of different
    types, as 1, 1.0, True and "1". Raises MalformedMessage as `codec.pack` does.
    """
    try:
        form = {name: _canonical(arguments[name]) for name in sorted(arguments)}
        sent = {
            name: value
            for name, value in form.items()
            if name not in defaults or _packed(value) != _packed(_canonical(defaults[name]))
        }
    except RecursionError:
        raise MalformedMessage("The payload cannot be encoded: it is too deep, or contains itself") from None
    return hashlib.sha256(VERSION + _packed(sent)).digest()


def _packed(value: object) -> bytes:
    return pack_any_size(value, _LIMITS, "The payload")


def _canonical(value: object) -> object:
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, dict):
        return _map(cast("dict[Any, object]", value))
    if isinstance(value, list | tuple):
        return tuple(map(_canonical, cast("list[object]", value)))
    if isinstance(value, set | frozenset):
        return frozenset(map(_canonical, cast("set[object]", value)))
    return _scalar(value)


def _scalar(value: object) -> object:
    if isinstance(value, float):
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, Decimal) and value.is_finite():
        return _decimal(value)
    if isinstance(value, datetime):
        return _instant(value)
    return value


def _map(value: dict[Any, object]) -> dict[Any, object]:
    mapping: dict[Any, object] = {_canonical(key): _canonical(item) for key, item in value.items()}
    if len(mapping) != len(value):
        raise MalformedMessage("The payload cannot be encoded: two keys of a map have the same value")
    if all(isinstance(key, str) for key in mapping):
        return {key: mapping[key] for key in sorted(mapping)}
    return mapping  # packed in the order of the packed keys


def _decimal(value: Decimal) -> Decimal:
    """Without trailing zeros, exactly: `Decimal.normalize` rounds to the context's precision."""
    sign, digits, exponent = value.as_tuple()
    if not any(digits):
        return Decimal(0)
    zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return Decimal((sign, digits[: len(digits) - zeros], int(exponent) + zeros))


def _instant(value: datetime) -> datetime:
    if value.tzinfo is None or value.utcoffset() is None:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:  # within a day of year 1 or 9999
        return value
