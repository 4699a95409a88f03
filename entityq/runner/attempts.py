"""How often a request may take its process down with it before it is answered instead of run.

The count is a column of `pending`, written by the process that ends (see attempt_record.py), so only what is read
from the outbox carries it. That is enough: whoever owns the shard next got the lease after that process had
ended, and its first pass brings the row with the count. An entry of the same request, however often it was
added, does not get past that row: until the pass ends it waits, and is then dropped because the intake knows
the id; afterwards it is old, or a gap (one more pass), or known, too.
"""

from entityq.envelope import Envelope

# Processes. One may have been blocked by what a handler met that day; three were blocked by the handler.
MAX_ATTEMPTS = 3

_WHAT_TO_DO = "Move what blocks into a handler that is a plain function (def), or into asyncio.to_thread"


def exhausted(attempts: int) -> bool:
    """Whether a request is not to be run again."""
    return attempts >= MAX_ATTEMPTS


def exhausted_text(envelope: Envelope, attempts: int) -> str:
    """What its caller is told."""
    return (
        f"{envelope.address} blocked the event loop of {attempts} runners, one after the other, while handling "
        f"{envelope.message!r}, and each had to end its process; it is not run again, and its state is unchanged. "
        f"{_WHAT_TO_DO}"
    )


def given_up_text(envelope: Envelope) -> str:
    """The same for a volatile request: nothing counts its attempts, so the first is the last."""
    return (
        f"{envelope.address} blocked the event loop of its runner while handling {envelope.message!r}, and the "
        f"runner had to end its process; a volatile message is not run again. {_WHAT_TO_DO}"
    )
