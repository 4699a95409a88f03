"""One setting: how it is declared, and how its text or value is checked.

A kind turns text (from the environment), or a value (an argument, or from TOML), into the checked value. It
raises ValueError with the end of a sentence that begins with the setting's name: "must be ...".
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

Parse = Callable[[object], object]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, None: 1.0}
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, None: 1}
_FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting's value is: `name` with its unit, for people, and `parse`."""

    name: str
    parse: Parse
    show: Callable[[object], str] = str
    secret: bool = False


def declared(default: object, kind: Kind, explanation: str) -> Any:
    """A field of Settings, with its one declaration."""
    return field(default=default, metadata={"kind": kind, "help": explanation})


def flag() -> Kind:
    def parse(value: object) -> bool:
        known = value if isinstance(value, bool) else _FLAGS.get(str(value).lower())
        if known is None:
            raise ValueError("must be true or false")
        return known

    return Kind("flag", parse, lambda value: str(value).lower())


def count(minimum: int = 1, maximum: int | None = None) -> Kind:
    bounds = f"at least {minimum:,}" if maximum is None else f"{minimum:,} to {maximum:,}"

    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and re.fullmatch(r"-?\d[\d_]*", value) else value
        if isinstance(number, bool) or not isinstance(number, int) or not _within(number, minimum, maximum):
            raise ValueError(f"must be a whole number, {bounds}")
        return number

    return Kind(f"number, {bounds}", parse, lambda value: f"{value:_}")


def factor() -> Kind:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("must be a number above 0")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ValueError("must be a number above 0")
        return number

    return Kind("number above 0", parse, lambda value: f"{value:g}")


def duration(minimum: float) -> Kind:
    """Seconds as a number, or text with a unit: 250ms, 5s, 2m, 1h, 7d."""

    def parse(value: object) -> float:
        match = _DURATION.fullmatch(str(value).strip())
        if match is None or isinstance(value, bool):
            raise ValueError("must be a duration: seconds, or a number with ms, s, m, h or d")
        seconds = float(match[1]) * _SECONDS[cast("str | None", match[2])]
        if seconds < minimum:
            raise ValueError(f"must be at least {minimum:g} s")
        return seconds

    return Kind(f"duration, at least {minimum:g} s", parse, _show_duration)


def _show_duration(value: object) -> str:
    seconds = cast("float", value)
    days = seconds / _SECONDS["d"]
    return f"{days:g} d" if seconds and days == int(days) else f"{seconds:g} s"


def size(minimum: int, maximum: int) -> Kind:
    """Bytes as a number, or text with a unit: 64KiB, 1MiB."""

    def parse(value: object) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None or isinstance(value, bool):
            raise ValueError("must be a size: bytes, or a number with B, KiB, MiB or GiB")
        total = int(match[1]) * _BYTES[cast("str | None", match[2])]
        if not _within(total, minimum, maximum):
            raise ValueError(f"must be {show_size(minimum)} to {show_size(maximum)}")
        return total

    return Kind(f"size, {show_size(minimum)} to {show_size(maximum)}", parse, show_size)


def show_size(value: object) -> str:
    """The largest unit that a number of bytes is a multiple of."""
    total = cast("int", value)
    for unit in ("GiB", "MiB", "KiB"):
        if total and total % _BYTES[unit] == 0:
            return f"{total // _BYTES[unit]} {unit}"
    return f"{total} B"


def text(pattern: str, explanation: str) -> Kind:
    def parse(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {explanation}")
        return value

    return Kind("text", parse)


def choice(*choices: str) -> Kind:
    named = f"{', '.join(choices[:-1])} or {choices[-1]}"

    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be {named}")
        return str(value)

    return Kind(named, parse)


def url(*schemes: str) -> Kind:
    def parse(value: object) -> str:
        # The value is not repeated: it can hold a password, also when it is malformed.
        if not isinstance(value, str) or value.partition("://")[0] not in schemes:
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{s}://' for s in schemes)}")
        return value

    return Kind("URL", parse, secret=True)


def names(pattern: str, explanation: str) -> Kind:
    """A list, or text with commas; order is kept, repeats are dropped."""

    def parse(value: object) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, Iterable):
            raise ValueError("must be a list of names")
        found = tuple(dict.fromkeys(str(part).strip() for part in cast("Iterable[object]", parts)))
        for part in found:
            if not re.fullmatch(pattern, part):
                raise ValueError(f"must be {explanation}, not {part!r}")
        return found

    return Kind("names, separated by commas", parse, lambda value: ", ".join(cast("tuple[str, ...]", value)))


def _within(number: int, minimum: int, maximum: int | None) -> bool:
    return number >= minimum and (maximum is None or number <= maximum)
