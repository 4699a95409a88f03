"""Log lines on stderr, as text or JSON. No library is imported here: a worker's supervisor logs too."""

import json
import logging
import re
import sys
from datetime import UTC, datetime

LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("text", "json")

_EVENT = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+)(?=[\s:]|$)")
_FACT = re.compile(r"\b([a-z][a-z0-9_]*)=([^\s:;,]+)")
# Errors of drivers and of users' code can quote a URL or a connection string.
_SECRETS = (
    (re.compile(r"(\w://)\S*@"), r"\1***@"),
    (re.compile(r"\b(password|passwd|pwd)(['\"]?\s*[=:]\s*)(?!\*)\S+", re.IGNORECASE), r"\1\2***"),
)


def masked(text: str) -> str:
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    """`2026-11-23T20:15:01.123Z INFO runner-1 event.name key=value`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_time(record)} {record.levelname} {self._process} {record.getMessage()}"
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return masked("\n".join(filter(None, (text, trace))))


class JsonFormatter(logging.Formatter):
    """One object a line; `event` and `facts` are those of the message, where it has them."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        message = masked(record.getMessage())
        event = _EVENT.match(message)
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": message,
        }
        if event:
            line |= {"event": event[1], "facts": dict(_FACT.findall(message))}
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line)


def configure_logging(process: str, *, level: str, style: str) -> None:
    """Sends everything that is logged to stderr, under the name of this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if style == "json" else TextFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
