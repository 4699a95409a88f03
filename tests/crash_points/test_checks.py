"""A sweep that finds nothing has looked: each kind of violation is seen."""

from collections.abc import Callable

import pytest

from tests.crash_points.checks import Stored, Told, told_by, violations
from tests.crash_points.script import Step, append, left, write

SCRIPT = [write("ask", "e", "k1"), append("e", "a1"), append("e", "a2"), Step("wait")]
APPLIED = ["k1", "a1", "a2", "end"]


def telling() -> Told:
    answers = {"k1": [["k1"]], "a1": [["k1", "a1"]], "a2": [["k1", "a1", "a2"]]}
    return Told(["k1", "a1", "a2"], {"a1": 1, "a2": 2}, answers)


def stored(entries: list[str]) -> Stored:
    all_entries = {"e": entries, "e-target": ["p1 first", "p1 second", "end"], "e-asked": ["c1", "end"]}
    return Stored(
        entries=all_entries,
        versions={name: len(each) for name, each in all_entries.items()},
        epochs={name: [1] * len(each) for name, each in all_entries.items()},
    )


def test_nothing_is_found_where_all_is_well() -> None:
    assert violations("e", SCRIPT, [telling()], stored(APPLIED)) == []


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["k1", "a1", "a1", "a2", "end"], "a1 was applied 2 times"),
        (["k1", "a2", "end"], "accepted and not applied: {'a1'}"),
        (["k1", "a2", "a1", "end"], "sent in the order"),
        (["k1", "a1", "a2", "x", "end"], "nobody sent x"),
    ],
)
def test_what_is_wrong_with_a_journal_is_found(entries: list[str], expected: str) -> None:
    assert any(expected in each for each in violations("e", SCRIPT, [telling()], stored(entries)))


def _answered_differently(told: Told) -> None:
    told.answered["k1"].append(["other"])


def _unanswered(told: Told) -> None:
    del told.answered["a2"]


def _failed(told: Told) -> None:
    told.failed.append("k1: SendTimeout")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_answered_differently, "answered differently"),
        (_unanswered, "accepted and never answered"),
        (_failed, "a caller was failed"),
    ],
)
def test_what_callers_are_told_is_checked(spoil: Callable[[Told], None], expected: str) -> None:
    told = telling()
    spoil(told)
    assert any(expected in each for each in violations("e", SCRIPT, [told], stored(APPLIED)))


@pytest.mark.parametrize(
    ("versions", "epochs", "expected"),
    [
        ({"e": 5}, {}, "4 turns made version 5"),
        ({}, {"e": [1, 1, None, 1]}, "4 turns, requests by epoch"),
        ({}, {"e": [1, 1, 1, 1, 1]}, "4 turns, requests by epoch"),
        ({}, {"e": [1, 2, 1, 2]}, "an older epoch after a newer one"),
    ],
)
def test_versions_and_epochs_are_checked(
    versions: dict[str, int], epochs: dict[str, list[int | None]], expected: str
) -> None:
    good = stored(APPLIED)
    what = Stored(good.entries, {**good.versions, **versions}, {**good.epochs, **epochs})
    assert any(expected in each for each in violations("e", SCRIPT, [telling()], what))


def test_what_a_killed_producer_did_not_know_may_be_there_or_not() -> None:
    killed = Told(["k1", "a1"], {}, {"k1": [["k1"]]})
    successor = Told(["k1", "a2"], {"a2": 2}, {"k1": [["k1"]], "a2": [["k1", "a2"]]})
    for entries in (["k1", "a2", "end"], ["k1", "a1", "a2", "end"]):
        assert violations("e", SCRIPT, [killed, successor], stored(entries)) == []
    twice = stored(["k1", "a1", "a2", "a1", "end"])
    assert violations("e", SCRIPT, [killed, successor], twice) != []


def test_a_successor_repeats_what_has_a_key_and_goes_on_with_the_rest() -> None:
    assert [step.label for step in left(SCRIPT, {"k1", "a1"})] == ["k1", "a2", ""]


def test_reports_are_read() -> None:
    told = told_by(
        [
            {"kind": "sending", "label": "a"},
            {"kind": "accepted", "label": "a", "request": 7},
            {"kind": "answered", "label": "a", "value": ["a"]},
            {"kind": "failed", "label": "b", "error": "E"},
            {"kind": "refused", "label": "c", "error": "E"},
        ]
    )
    assert told == Told(["a"], {"a": 7}, {"a": [["a"]]}, ["b: E"], ["c: E"])
