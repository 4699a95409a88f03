"""msgpack within limits: what payloads, replies and states are made of.

Frozen: the extension types below. None, bool, int of 64 bits, finite float, str, bytes, list and dict with
text keys are msgpack's own. An enum is written as its value and a tuple as a list; the annotations of whoever
reads turn them back. Reading also takes msgpack's own timestamps, as datetimes in UTC.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from math import isfinite
from typing import Any, cast
from uuid import UUID

from msgpack import ExtType, Packer, StackError, packb, unpackb

from entityq.errors import MalformedMessage, PayloadTooLarge

# SET: a packed array of the elements in the order of their packed bytes.
# MAP, for other keys than text: a packed array of key, value, key, value in the order of the packed keys.
DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID_, SET, MAP = range(1, 9)

# Sets and maps are packed inside of one another, and each level of unpacking takes 40 KiB of the C stack,
# which Python does not watch.
MAX_NESTED_EXTENSIONS = 16
MAX_RECORD_FIELDS = 15
MAX_RECORD_MAP = 64

_MICROSECOND = timedelta(microseconds=1)
_ATOMS = frozenset({str, int, bool, type(None), bytes})
_TIMESTAMP_AS_DATETIME = 3
_SHORT_ARRAY = 0x90
# MemoryError: a length that the bytes only claim. TypeError: an unhashable key or element.
_REFUSALS = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, InvalidOperation)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one packed value: its bytes, how deep it nests, how many lists, maps and sets it has."""

    max_bytes: int = 1024**2
    max_depth: int = 64
    max_containers: int = 10_000


def pack(value: object, limits: Limits, what: str) -> bytes:
    """The packed value; `what` names it in errors.

    Raises MalformedMessage for a value that cannot be written (its type, NaN, an infinity, an int of more
    than 64 bits, text with lone surrogates, too deep, too many containers), PayloadTooLarge over `max_bytes`.
    """
    packed = pack_any_size(value, limits, what)
    check_size(packed, limits.max_bytes, what)
    return packed


def pack_any_size(value: object, limits: Limits, what: str) -> bytes:
    """As `pack`, for bytes that are compared or hashed, and not kept."""
    try:
        return packb(value if _is_flat(value) else _Packing(limits).plain(value, 0))
    except _REFUSALS as error:
        raise MalformedMessage(f"{what} cannot be encoded: {_reason(error)}") from None


def unpack(data: bytes, limits: Limits, what: str) -> Any:
    """What was packed. Raises PayloadTooLarge before reading, MalformedMessage for every other refusal."""
    check_size(data, limits.max_bytes, what)
    reading = _Unpacking(limits)
    try:
        value = reading.unpacked(data)
        # So many levels need as many containers: most values need not be walked.
        if reading.containers > limits.max_depth:
            _check_depth(value, limits.max_depth)
    except _REFUSALS as error:
        raise MalformedMessage(f"{what} cannot be decoded: {_reason(error)}") from None
    return value


def unpack_record(data: bytes, max_bytes: int, what: str) -> list[Any]:
    """A short array of text, bytes, numbers and a small map; the caller checks what its elements are.

    Raises PayloadTooLarge before reading, MalformedMessage for everything that is no such array.
    """
    check_size(data, max_bytes, what)
    if not data or data[0] & 0xF0 != _SHORT_ARRAY:
        raise MalformedMessage(f"{what} cannot be decoded: it is no short array")
    try:
        fields: list[Any] = unpackb(
            data, max_array_len=MAX_RECORD_FIELDS, max_map_len=MAX_RECORD_MAP, max_ext_len=0
        )
    except _REFUSALS as error:
        raise MalformedMessage(f"{what} cannot be decoded: {_reason(error)}") from None
    return fields


def check_size(data: bytes, max_bytes: int, what: str) -> None:
    """Raises PayloadTooLarge above `max_bytes`."""
    if len(data) > max_bytes:
        raise PayloadTooLarge(
            f"{what} has {len(data):,} bytes, the limit is {max_bytes:,}",
            advice="Send a reference to large data, or raise the limit in every process.",
        )


def _is_flat(value: object) -> bool:
    """Whether msgpack can take the value as it is; most payloads are a few scalars."""
    if type(value) is not dict:
        return type(value) in _ATOMS
    for key, item in cast("dict[object, object]", value).items():
        if type(key) is not str:
            return False
        if type(item) not in _ATOMS and not (type(item) is float and isfinite(item)):
            return False
    return True


class _Packing:
    """Turns one value into what msgpack can write, within the limits. Raises `_REFUSALS`."""

    __slots__ = ("_containers", "_limits", "_nested")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._containers = 0
        self._nested = 0

    def plain(self, value: object, depth: int) -> object:
        """`depth`: in how many containers the value is."""
        if type(value) in _ATOMS:
            return value
        if isinstance(value, Enum):
            return self.plain(value.value, depth)
        if isinstance(value, dict | list | tuple | set | frozenset):
            return self._container(cast("Any", value), depth + 1)
        return _scalar(value)

    def _container(self, value: Any, depth: int) -> object:
        if depth > self._limits.max_depth:
            raise ValueError(f"it is more than {self._limits.max_depth} levels deep")
        self._containers += 1
        if self._containers > self._limits.max_containers:
            raise ValueError(_too_many(self._limits))
        if isinstance(value, list | tuple):
            items = cast("list[object]", value)
            return [item if type(item) in _ATOMS else self.plain(item, depth) for item in items]
        if isinstance(value, set | frozenset):
            return self._set(cast("set[object]", value), depth)
        return self._map(cast("dict[object, object]", value), depth)

    def _map(self, value: dict[object, object], depth: int) -> object:
        if set(map(type, value)) <= {str}:
            return self._text_map(value, depth)
        # The member of an enum is written as its value, so two different keys can become one.
        pairs = {key.value if isinstance(key, Enum) else key: item for key, item in value.items()}
        if len(pairs) != len(value):
            raise ValueError(_SAME_KEYS)
        if all(isinstance(key, str) for key in pairs):
            return self._text_map(pairs, depth)
        self._enter()
        packed = {self._packed(key, depth): item for key, item in pairs.items()}
        if len(packed) != len(pairs):
            raise ValueError(_SAME_KEYS)
        parts = [part for key in sorted(packed) for part in (key, self._packed(packed[key], depth))]
        return self._leave(MAP, parts)

    def _text_map(self, value: dict[object, object], depth: int) -> object:
        return {key: item if type(item) in _ATOMS else self.plain(item, depth) for key, item in value.items()}

    def _set(self, value: set[object], depth: int) -> object:
        self._enter()
        return self._leave(SET, sorted({self._packed(item, depth) for item in value}))

    def _packed(self, value: object, depth: int) -> bytes:
        return packb(self.plain(value, depth))

    def _enter(self) -> None:
        self._nested += 1
        if self._nested > MAX_NESTED_EXTENSIONS:
            raise ValueError(_TOO_NESTED)

    def _leave(self, code: int, parts: list[bytes]) -> ExtType:
        self._nested -= 1
        return ExtType(code, Packer().pack_array_header(len(parts)) + b"".join(parts))


class _Unpacking:
    """Reads one value and counts its containers. Raises `_REFUSALS`."""

    __slots__ = ("_limits", "_nested", "containers")

    def __init__(self, limits: Limits) -> None:
        self.containers = 0
        self._limits = limits
        self._nested = 0

    def unpacked(self, data: bytes) -> object:
        return unpackb(
            data,
            strict_map_key=True,
            timestamp=_TIMESTAMP_AS_DATETIME,
            object_hook=self._counted,
            list_hook=self._counted,
            ext_hook=self._extension,
        )

    def _counted(self, container: object) -> object:
        self.containers += 1
        if self.containers > self._limits.max_containers:
            raise ValueError(_too_many(self._limits))
        return container

    def _extension(self, code: int, data: bytes) -> object:
        read = _READERS.get(code)
        if read is not None:
            return read(data)
        if code not in (SET, MAP):
            raise ValueError(f"the extension type {code} is unknown")
        self._nested += 1
        if self._nested > MAX_NESTED_EXTENSIONS:
            raise ValueError(_TOO_NESTED)
        items = self.unpacked(data)
        self._nested -= 1
        if not isinstance(items, list):
            raise TypeError("a set or map is not written as an array")
        elements = cast("list[object]", items)
        if code == SET:
            return {_frozen(element) for element in elements}
        if len(elements) % 2:
            raise ValueError("a map has a key without a value")
        return dict(zip(map(_frozen, elements[::2]), elements[1::2], strict=True))


def _frozen(value: object) -> object:
    """As an element of a set or a key: the hashable twin."""
    if isinstance(value, list):
        return tuple(map(_frozen, cast("list[object]", value)))
    if isinstance(value, set):
        return frozenset(cast("set[object]", value))
    return value


def _check_depth(value: object, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth + 1):
        level = [child for container in level for child in _children(container)]
        if not level:
            return
    raise ValueError(f"it is more than {max_depth} levels deep")


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        return [*mapping.keys(), *mapping.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(cast("list[object]", value))
    return []


def _scalar(value: object) -> object:
    if isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(cast("Any", value))
    for kind, code, write in _WRITERS:
        if isinstance(value, kind):
            return ExtType(code, write(value))
    raise TypeError(f"{type(value).__qualname__} is not a type that msgpack carries")


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _write_decimal(value: Decimal) -> bytes:
    if not value.is_finite():
        raise ValueError(f"{value} is not a finite number")
    return str(value).encode()


def _read_decimal(data: bytes) -> Decimal:
    value = Decimal(data.decode())
    if not value.is_finite():
        raise ValueError(f"{value} is not a finite number")
    return value


# Text, because 64 bits hold only half of the microseconds that a timedelta can have.
def _write_timedelta(value: timedelta) -> bytes:
    return str(value // _MICROSECOND).encode()


# In this order: a datetime is a date, too.
_WRITERS: tuple[tuple[type, int, Callable[[Any], bytes]], ...] = (
    (datetime, DATETIME, lambda value: value.isoformat().encode()),
    (date, DATE, lambda value: value.isoformat().encode()),
    (time, TIME, lambda value: value.isoformat().encode()),
    (timedelta, TIMEDELTA, _write_timedelta),
    (Decimal, DECIMAL, _write_decimal),
    (UUID, UUID_, lambda value: value.bytes),
)
_READERS: dict[int, Callable[[bytes], object]] = {
    DATETIME: lambda data: datetime.fromisoformat(data.decode()),
    DATE: lambda data: date.fromisoformat(data.decode()),
    TIME: lambda data: time.fromisoformat(data.decode()),
    TIMEDELTA: lambda data: timedelta(microseconds=int(data)),
    DECIMAL: _read_decimal,
    UUID_: lambda data: UUID(bytes=data),
}

_SAME_KEYS = "two keys of a map have the same value"
_TOO_NESTED = f"it has sets and maps more than {MAX_NESTED_EXTENSIONS} levels deep in one another"


def _too_many(limits: Limits) -> str:
    return f"it has more than {limits.max_containers:,} lists, maps and sets"


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError | StackError):
        return "it is too deep, or contains itself"
    return str(error) or type(error).__name__
