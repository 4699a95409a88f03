"""What happened, as lines of JSON: each process writes its own file, one line at a time."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entityq import EntityQError

# A reply as it is written down, see ledger.plain.
Value = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Invocation:
    """One attempt. `sender` is a client object, `n` counts what it sent, in order. A repeat is an attempt of its
    own with the same key; `variant` tells payloads of one key apart."""

    sender: str
    n: int
    kind: str
    type: str
    entity: str
    message: str
    key: str | None = None
    variant: int = 0

    @property
    def name(self) -> str:
        return f"{self.sender}/{self.n}"

    @property
    def persisted(self) -> bool:
        return self.kind != "read"


@dataclass(frozen=True, slots=True)
class Raised:
    """An error at the caller. `accepted`: yes, no, unknown."""

    error: str
    accepted: str
    request_id: int | None
    at: float
    what: str = ""


@dataclass(slots=True)
class Attempt:
    """Times are of CLOCK_MONOTONIC, which all processes share. One without an end was cut off by a kill."""

    invocation: Invocation
    invoked: float
    accepted: float | None = None
    request_id: int | None = None
    duplicate: bool = False
    replied: float | None = None
    value: Value | None = None
    errors: list[Raised] = field(default_factory=list[Raised])

    @property
    def ended(self) -> float | None:
        return self.replied or (self.errors[-1].at if self.errors else None)


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault, from its first moment to the end of its healing."""

    kind: str
    victim: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The memory of one runner, in bytes."""

    pid: int
    at: float
    rss: int


class Journalist:
    """Writes one file. A killed process loses nothing that it has written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def invoked(self, invocation: Invocation) -> None:
        self._write("invoked", name=invocation.name, **asdict(invocation))

    def accepted(self, invocation: Invocation, request_id: int, *, duplicate: bool) -> None:
        self._write("accepted", name=invocation.name, request_id=request_id, duplicate=duplicate)

    def replied(self, invocation: Invocation, value: Value) -> None:
        self._write("replied", name=invocation.name, value=value)

    def failed(self, invocation: Invocation, error: EntityQError) -> None:
        accepted = error.accepted.name.lower()
        self._write(
            "failed",
            name=invocation.name,
            error=type(error).__name__,
            accepted=accepted,
            request_id=error.request_id,
            what=error.what,
        )

    def struck(self, struck: Struck) -> None:
        self._write("struck", **asdict(struck))

    def sampled(self, sample: Sample) -> None:
        self._write("sampled", **asdict(sample))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: str, **facts: Any) -> None:
        line = {"event": event, "time": time.monotonic(), "clock": time.time(), **facts}
        self._file.write(json.dumps(line) + "\n")


@dataclass(slots=True)
class History:
    attempts: dict[str, Attempt] = field(default_factory=dict[str, Attempt])
    faults: list[Struck] = field(default_factory=list[Struck])
    samples: list[Sample] = field(default_factory=list[Sample])


def read_history(files: Iterable[Path]) -> History:
    history = History()
    for file in files:
        for line in _lines(file):
            _take(history, line)
    return history


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole ones: the last line of a process that was killed may be cut off."""
    *lines, _rest = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _take(history: History, line: dict[str, Any]) -> None:
    event, at = line.pop("event"), float(line.pop("time"))
    line.pop("clock")
    if event == "struck":
        history.faults.append(Struck(**line))
    elif event == "sampled":
        history.samples.append(Sample(**line))
    elif event == "invoked":
        name = line.pop("name")
        history.attempts[name] = Attempt(Invocation(**line), at)
    else:
        _continue(history.attempts[line.pop("name")], event, at, line)


def _continue(attempt: Attempt, event: str, at: float, facts: dict[str, Any]) -> None:
    if event == "accepted":
        attempt.accepted, attempt.request_id = at, facts["request_id"]
        attempt.duplicate = facts["duplicate"]
    elif event == "replied":
        attempt.replied, attempt.value = at, facts["value"]
    else:
        attempt.errors.append(Raised(at=at, **facts))
