"""What went wrong, for the operator: an exception with its chain and its tracebacks, as bounded JSON."""

import json
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

# Bytes of the JSON, and characters of the one line.
MAX_BYTES = 64 * 1024
MAX_LINE = 1_000

# Of one exception: how many frames at its begin and at its end are kept, and characters of a text. Taken in
# turn, until all of it is small enough.
_CUTS = ((40, 8_000), (20, 4_000), (8, 1_000), (3, 300), (1, 100))
# Of a text, before secrets are looked for: much more than is shown.
_LOOKED_AT = 100_000
# Exceptions in all, in a chain or in groups.
_MOST = 50

# Up to the last "@": a password can have others in it. What is masked too much is no harm. All is bounded: a text
# can be long, and without a blank.
_URL_SECRET = re.compile(r"(?<![A-Za-z0-9])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s'\"]{0,1000}@")
_PASSWORD = re.compile(r"(?i)\b(?P<name>password|passwd|pwd)=\S{1,1000}")


@dataclass(frozen=True, slots=True)
class Cause:
    """`type` and `text` in a line; `detail` is a JSON object with type, message, traceback, cause, exceptions."""

    type: str
    text: str
    detail: str


def cause_of(error: BaseException) -> Cause:
    """Of an exception, with what it was raised from."""
    for frames, characters in _CUTS:
        detail = _encode(_Describing(frames, characters).describe(error))
        if len(detail.encode()) <= MAX_BYTES:
            break
    else:
        detail = _encode(
            {"type": _type_name(error), "message": clean(_text_of(error))[:MAX_LINE], "cut": True}
        )
    return Cause(_type_name(error), clean(_text_of(error))[:MAX_LINE], detail)


def plain_cause(type_name: str, text: str) -> Cause:
    """Where no exception was raised."""
    text = clean(text)
    return Cause(type_name, text[:MAX_LINE], _encode({"type": type_name, "message": text[: MAX_LINE * 8]}))


def clean(text: str) -> str:
    """As Postgres can store it, in text and in jsonb, without user information of URLs and passwords."""
    text = (
        text[:_LOOKED_AT].replace("\x00", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace").decode()
    )
    return _PASSWORD.sub(r"\g<name>=***", _URL_SECRET.sub(r"\g<scheme>***@", text))


class _Describing:
    """One pass with one size of frames and texts; an exception that was met before is not described again."""

    def __init__(self, frames: int, characters: int) -> None:
        self._frames = frames
        self._characters = characters
        self._seen: set[int] = set()

    def describe(self, error: BaseException) -> dict[str, Any]:
        self._seen.add(id(error))
        found: dict[str, Any] = {"type": _type_name(error), "message": self._short(_text_of(error))}
        notes: object = getattr(error, "__notes__", None)
        if isinstance(notes, list) and notes:
            found["notes"] = [self._short(str(note)) for note in cast("list[object]", notes)[:10]]
        if error.__traceback__ is not None:
            found["traceback"] = list(self._lines(error.__traceback__))
        if isinstance(error, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", error)
            found["exceptions"] = [self.describe(each) for each in group.exceptions if self._next(each)]
        if error.__cause__ is not None:
            if self._next(error.__cause__):
                found["cause"] = self.describe(error.__cause__)
        elif (
            error.__context__ is not None and not error.__suppress_context__ and self._next(error.__context__)
        ):
            found["context"] = self.describe(error.__context__)
        return found

    def _next(self, error: BaseException) -> bool:
        return id(error) not in self._seen and len(self._seen) < _MOST

    def _lines(self, trace: TracebackType) -> Iterator[str]:
        frames = traceback.extract_tb(trace)
        left_out = len(frames) - 2 * self._frames
        for place, frame in enumerate(frames):
            if left_out > 0 and self._frames <= place < self._frames + left_out:
                if place == self._frames:
                    yield f"... {left_out} frames ..."
                continue
            yield self._short(f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}")

    def _short(self, text: str) -> str:
        text = clean(text)
        return text if len(text) <= self._characters else f"{text[: self._characters]}..."


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:  # noqa: BLE001 - its __str__ is a user's, and can do anything
        return f"(its text raised {type(failed).__name__})"


def _encode(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)
