"""Log lines: their two forms, and what must not be in them."""

import json
import logging

import pytest
from entityq_cli.log_format import JsonFormatter, TextFormatter, masked


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    trace = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("entityq.runner", logging.WARNING, __file__, 1, message, args, trace)
    made.created = 1_795_464_901.123
    return made


def test_text() -> None:
    line = TextFormatter("runner-1").format(record("runner.joined incarnation=%s name=%s", 7, "bank"))

    assert line == "2026-11-23T20:15:01.123Z WARNING runner-1 runner.joined incarnation=7 name=bank"


def test_json_has_the_same_facts() -> None:
    message = "runner.leases_lost incarnation=%s shards=%d: connection lost; joining again"

    line = json.loads(JsonFormatter("runner-1").format(record(message, 7, 3)))

    assert line == {
        "time": "2026-11-23T20:15:01.123Z",
        "level": "warning",
        "process": "runner-1",
        "logger": "entityq.runner",
        "message": "runner.leases_lost incarnation=7 shards=3: connection lost; joining again",
        "event": "runner.leases_lost",
        "facts": {"incarnation": "7", "shards": "3"},
    }


def test_a_sentence_is_no_event() -> None:
    line = json.loads(JsonFormatter("runner-1").format(record("Using embedded servers in /a=b.")))

    assert "event" not in line


@pytest.mark.parametrize("formatter", [TextFormatter("runner-1"), JsonFormatter("runner-1")])
def test_secrets_in_messages_and_tracebacks_are_masked(formatter: logging.Formatter) -> None:
    try:
        raise ConnectionError("redis://:hunter2@host/0 refused, password='hunter2'")
    except ConnectionError as error:
        text = formatter.format(record("cannot reach %s", "postgresql://u:hunter2@host/db", error=error))

    assert "hunter2" not in text
    assert "ConnectionError" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://u:p@host:5432/db now", "at postgresql://***@host:5432/db now"),
        ("redis://:a/b@c@host/0", "redis://***@host/0"),
        ("host=db password=hunter2 user=u", "host=db password=*** user=u"),
        ("nothing secret: a@b", "nothing secret: a@b"),
    ],
)
def test_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
