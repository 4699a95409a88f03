from datetime import UTC, datetime, timedelta, timezone

import pytest

from entityq.address import Address
from entityq.envelope import EXPIRES, Envelope
from entityq.errors import MalformedMessage
from entityq.timing import expires_ms, read_delay, read_eta, read_expires

NOON = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)


def test_a_time_is_one_instant() -> None:
    there = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert (read_eta(there), read_eta(there).tzinfo) == (NOON, UTC)
    assert read_expires(there) == NOON


def test_a_time_without_a_time_zone_is_refused() -> None:
    with pytest.raises(MalformedMessage, match=r"eta has no time zone: 2030-01-31T12:00:00.*now\(UTC\)"):
        read_eta(NOON.replace(tzinfo=None))
    with pytest.raises(MalformedMessage, match="expires has no time zone"):
        read_expires(NOON.replace(tzinfo=None))


def test_a_time_that_is_out_of_range_in_utc_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="out of range"):
        read_eta(datetime.max.replace(tzinfo=timezone(-timedelta(hours=5))))


def test_durations_are_seconds() -> None:
    assert read_delay(timedelta(minutes=2)) == 120.0
    assert read_delay(0) == 0.0
    assert read_expires(1.5) == 1.5


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), timedelta(days=-1), 1e12])
def test_durations_that_make_no_sense_are_refused(seconds: float | timedelta) -> None:
    with pytest.raises(MalformedMessage, match="delay must be from 0 seconds to 100 years"):
        read_delay(seconds)


def test_a_request_expires_at_a_time_or_some_time_after_its_sending() -> None:
    assert expires_ms(NOON, 5.0) == 1_896_091_200_000
    assert expires_ms(2.5, 1000.0) == 1_002_500


@pytest.mark.parametrize(
    ("text", "expired"),
    [("1000", True), ("1001", False), ("", False), ("x", False), ("1" * 5000, False), ("-1", False)],
)
def test_an_envelope_has_expired_at_its_time(text: str, expired: bool) -> None:
    """A header can be anything: what is no time never expires."""
    envelope = Envelope(1, Address("Account", "a"), "m", b"", True, 7, headers={EXPIRES: text})
    assert envelope.expired(1.0) is expired


def test_without_the_header_it_never_does() -> None:
    assert not Envelope(1, Address("Account", "a"), "m", b"", True, 7).expired(1e10)
