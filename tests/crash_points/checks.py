"""What must be true after each point, whatever happened there: pure functions of what was told and stored."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.crash_points.script import Step


@dataclass(slots=True)
class Told:
    """What one producer was told, by label."""

    started: list[str] = field(default_factory=list[str])
    accepted: dict[str, int] = field(default_factory=dict[str, int])
    answered: dict[str, list[list[str]]] = field(default_factory=dict[str, list[list[str]]])
    failed: list[str] = field(default_factory=list[str])
    refused: list[str] = field(default_factory=list[str])

    @property
    def certain(self) -> set[str]:
        return {*self.accepted, *self.answered}


@dataclass(frozen=True, slots=True)
class Stored:
    """Of the journals of one point: by entity id, the entries, the state's version, and per request in outbox
    order whether it is answered, and under which epoch."""

    entries: Mapping[str, Sequence[str]]
    versions: Mapping[str, int]
    epochs: Mapping[str, Sequence[int | None]]


def told_by(reports: Sequence[Mapping[str, Any]]) -> Told:
    told = Told()
    for report in reports:
        match report["kind"]:
            case "sending":
                told.started.append(report["label"])
            case "accepted":
                told.accepted[report["label"]] = report["request"]
            case "answered":
                told.answered.setdefault(report["label"], []).append(report["value"])
            case "failed":
                told.failed.append(f"{report['label']}: {report['error']}")
            case "refused":
                told.refused.append(f"{report['label']}: {report['error']}")
            case _:
                pass
    return told


def violations(entity: str, script: Sequence[Step], tellings: Sequence[Told], stored: Stored) -> list[str]:
    """In words; empty when all is well. The second telling is that of the killed producer's successor."""
    found = [f"a caller was failed: {failure}" for told in tellings for failure in told.failed]
    found += _answers(tellings)
    found += _entries(entity, script, tellings, stored.entries[entity])
    for other, expected in ((f"{entity}-target", ["p1 first", "p1 second"]), (f"{entity}-asked", ["c1"])):
        if list(stored.entries[other]) != [*expected, "end"]:
            found.append(f"{other} has {stored.entries[other]} instead of {expected}, end")
    for name, entries in stored.entries.items():
        if stored.versions[name] != len(entries):
            found.append(f"{name}: {len(entries)} turns made version {stored.versions[name]}")
        if len(stored.epochs[name]) != len(entries) or None in stored.epochs[name]:
            found.append(f"{name}: {len(entries)} turns, requests by epoch {stored.epochs[name]}")
        elif len(tellings) == 1 and list(stored.epochs[name]) != sorted(
            map(int, filter(None, stored.epochs[name]))
        ):
            found.append(f"{name}: an older epoch after a newer one: {stored.epochs[name]}")
    return found


def _answers(tellings: Sequence[Told]) -> Iterator[str]:
    answers: dict[str, list[list[str]]] = {}
    for told in tellings:
        for label, values in told.answered.items():
            answers.setdefault(label, []).extend(values)
    for label, values in answers.items():
        if any(value != values[0] for value in values):
            yield f"{label} was answered differently: {values}"
    for label in tellings[-1].accepted:
        if label not in tellings[-1].answered:
            yield f"{label} was accepted and never answered"


def _entries(
    entity: str, script: Sequence[Step], tellings: Sequence[Told], entries: Sequence[str]
) -> Iterator[str]:
    labels = {step.label for step in script if step.label}
    certain = {label for told in tellings for label in told.certain}
    for label, count in Counter(entries).items():
        if count > 1:
            yield f"{entity}: {label} was applied {count} times: {entries}"
        if label not in labels | {"end"}:
            yield f"{entity}: nobody sent {label}: {entries}"
    if missing := certain - set(entries):
        yield f"{entity}: accepted and not applied: {missing}: {entries}"
    taken: set[str] = set()
    for told in tellings:
        # A repeat counts where it was accepted first; of what is not known to be accepted, nobody knows where.
        own = [label for label in dict.fromkeys(told.started) if label in told.certain and label not in taken]
        applied = [label for label in entries if label in own]
        if applied != own:
            yield f"{entity}: sent in the order {own}, applied in the order {applied}"
        taken |= set(told.started)
