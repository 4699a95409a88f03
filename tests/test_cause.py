"""What the operator gets to see of an exception."""

import json
from typing import Any

import pytest

from entityq.cause import MAX_BYTES, MAX_LINE, Cause, cause_of, plain_cause


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


def detail(cause: Cause) -> Any:
    assert len(cause.detail.encode()) <= MAX_BYTES
    return json.loads(cause.detail)


def test_the_chain_of_causes_is_told() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        cause = cause_of(error)
    found = detail(cause)
    assert (cause.type, cause.text) == ("ValueError", "outer")
    assert found["message"] == "outer"
    assert found["traceback"][-1].endswith('raise ValueError("outer") from error')
    assert found["cause"]["type"] == "KeyError"


def test_a_context_is_told_unless_it_is_suppressed() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise ValueError("outer")  # noqa: B904
    except ValueError as error:
        assert detail(cause_of(error))["context"]["type"] == "KeyError"
        error.__suppress_context__ = True
        assert "context" not in detail(cause_of(error))


def test_groups_have_their_exceptions_and_notes_are_kept() -> None:
    group = ExceptionGroup("two", [ValueError("a"), ExceptionGroup("more", [KeyError("b")])])
    group.add_note("while counting")
    found = detail(cause_of(raised(group)))
    assert found["notes"] == ["while counting"]
    assert [each["type"] for each in found["exceptions"]] == ["ValueError", "ExceptionGroup"]
    assert found["exceptions"][1]["exceptions"][0]["message"] == "'b'"


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert "cause" not in detail(cause_of(first))["cause"]


def recursive(depth: int) -> None:
    if depth:
        recursive(depth - 1)
    raise ValueError("x" * 100_000)


def test_it_is_bounded_and_keeps_where_it_began_and_where_it_was_raised() -> None:
    group: list[Exception] = []
    for _ in range(40):
        try:
            recursive(200)
        except ValueError as error:
            group.append(error)
    cause = cause_of(ExceptionGroup("many", group))
    found = detail(cause)
    (trace,) = {tuple(each["traceback"]) for each in found["exceptions"]}
    assert "test_it_is_bounded" in trace[0]
    assert "raise ValueError" in trace[-1]
    assert any("frames ..." in line for line in trace)
    assert len(cause.text) <= MAX_LINE


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_shown_is_no_problem() -> None:
    cause = cause_of(raised(Rude()))
    assert cause.text == "(its text raised RuntimeError)"
    assert cause.type.endswith("Rude")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:p@ss/w@host/db failed", "postgresql://***@host/db failed"),
        ("at redis://:pw@host:6379/0, again", "at redis://***@host:6379/0, again"),
        ("host=h password=secret dbname=d", "host=h password=*** dbname=d"),
        ("a\x00b", "a\u2400b"),
        ("\ud800", "\\ud800"),
        ("mail me@host about https://host/a", "mail me@host about https://host/a"),
    ],
)
def test_secrets_and_what_postgres_cannot_store_are_left_out(text: str, expected: str) -> None:
    assert plain_cause("T", text).text == expected
    assert detail(cause_of(ValueError(text)))["message"] == expected
