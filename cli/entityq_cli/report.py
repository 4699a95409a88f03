"""What a runner tells its worker over the link: one JSON object a line.

The link is a socket pair. Its end is how a runner notices that its worker died; how a worker notices that a
runner died is the end of the process, because children that the runner forked keep the socket open.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Loaded:
    """The app is imported. The facts are for the worker's banner."""

    version: str
    app: str
    namespace: str
    servers: dict[str, str]
    groups: list[str]
    entities: dict[str, list[str]]
    tasks: list[str]
    schedules: list[str]
    singletons: list[str]


@dataclass(frozen=True, slots=True)
class Serving:
    """The runner is a member of the cluster."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The runner cannot start, and trying again would not help; `code` is the command's exit code."""

    sentence: str
    code: int


Report = Loaded | Serving | Refused

_KINDS: dict[str, type[Loaded] | type[Serving] | type[Refused]] = {
    kind.__name__: kind for kind in (Loaded, Serving, Refused)
}


def encode_report(report: Report) -> bytes:
    return json.dumps({"kind": type(report).__name__, **asdict(report)}).encode() + b"\n"


def decode_report(line: bytes) -> Report:
    """Both ends are of one installation: anything else is a defect, and raises."""
    fields: dict[str, Any] = json.loads(line)
    return _KINDS[fields.pop("kind")](**fields)
