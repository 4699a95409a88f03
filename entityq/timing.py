"""When a request is to run, and when not any more, as its sender says it."""

import math
from datetime import UTC, datetime, timedelta

from entityq.errors import MalformedMessage

# Seconds: a hundred years. Postgres counts further, and no request is meant for later.
LONGEST = 100 * 365.25 * 86_400


def read_eta(eta: datetime) -> datetime:
    """In UTC. Raises MalformedMessage for a time without a time zone."""
    return _instant("eta", eta)


def read_delay(delay: float | timedelta) -> float:
    """In seconds. Raises MalformedMessage."""
    return _seconds("delay", delay)


def read_expires(expires: float | timedelta | datetime) -> float | datetime:
    """Seconds after the sending, or a time in UTC. Raises MalformedMessage."""
    if isinstance(expires, datetime):
        return _instant("expires", expires)
    return _seconds("expires", expires)


def expires_ms(expires: float | datetime, now: float) -> int:
    """As unix ms; `now` is the unix time of the sending, in seconds."""
    return int((expires.timestamp() if isinstance(expires, datetime) else now + expires) * 1000)


def _instant(what: str, given: datetime) -> datetime:
    if given.tzinfo is None or given.utcoffset() is None:
        raise MalformedMessage(
            f"{what} has no time zone: {given.isoformat()}",
            advice="Give it one, as in datetime.now(UTC) + timedelta(hours=1).",
        )
    try:
        return given.astimezone(UTC)
    except OverflowError as error:
        raise MalformedMessage(f"{what} is out of range: {given.isoformat()}") from error


def _seconds(what: str, given: float | timedelta) -> float:
    seconds = given.total_seconds() if isinstance(given, timedelta) else float(given)
    if math.isnan(seconds) or not 0 <= seconds <= LONGEST:
        raise MalformedMessage(f"{what} must be from 0 seconds to 100 years, not {given}")
    return seconds
