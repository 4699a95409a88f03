"""What a cancel came to, as whoever cancelled learns it."""

from enum import StrEnum


class CancelOutcome(StrEnum):
    """Of a cancel that is on record: it is not lost, whatever crashes afterwards."""

    CANCELLED = "cancelled"  # the request is answered with Interrupted
    REQUESTED = "requested"  # its runner ends it; who waits for the reply learns how
    ANSWERED = "already answered"  # its reply stands
