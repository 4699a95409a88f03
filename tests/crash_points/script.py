"""What a producer does at each point: as values, so that another one can go on where it was killed."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Step:
    """`label`: what the journal shows. "wait": for the replies of everything sent before."""

    kind: Literal["ask", "send", "wait"]
    label: str = ""
    entity: str = ""
    message: str = ""
    arguments: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def keyed(self) -> bool:
        return "key" in self.arguments


def write(kind: Literal["ask", "send"], entity: str, key: str) -> Step:
    return Step(kind, key, entity, "write", {"key": key})


def append(entity: str, text: str) -> Step:
    return Step("send", text, entity, "append", {"text": text})


def send_path(entity: str) -> list[Step]:
    """Every way to send, to one journal and two others."""
    return [
        write("ask", entity, "k1"),
        append(entity, "a1"),
        write("send", entity, "k2"),
        append(entity, "a2"),
        append(entity, "a3"),
        Step("wait"),
        Step("ask", "p1", entity, "pass_on", {"key": "p1", "to": f"{entity}-target"}),
        Step("ask", "c1", entity, "consult", {"key": "c1", "whom": f"{entity}-asked"}),
        write("ask", entity, "k1"),
        write("send", entity, "k2"),
        Step("wait"),
    ]


def left(script: Sequence[Step], started: Set[str]) -> list[Step]:
    """What another producer does when the first was killed: keyed requests again, the others only when the
    first had not begun to send them."""
    return [step for step in script if step.keyed or step.kind == "wait" or step.label not in started]
