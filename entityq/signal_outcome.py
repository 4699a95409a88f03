"""What a signal came to, as whoever sent it learns it."""

from enum import StrEnum


class SignalOutcome(StrEnum):
    """Only the first value counts; of a signal that is stored nothing is lost, whatever crashes afterwards."""

    SIGNALLED = "signalled"  # stored; whoever waits for it, or will, gets it
    ALREADY = "already signalled"  # an earlier value stands
    TIMED_OUT = "timed out"  # the wait for it has ended without it
    ANSWERED = "already answered"  # its request needs it no more
    UNKNOWN = "unknown request"  # its request is no longer kept
