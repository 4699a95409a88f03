"""How often a request may take its process down with it before it is answered instead of run.

Such attempts are lost: nobody is left to count them, but

- of a loop that is blocked for too long, the heart's thread writes the count before it ends the process (see
  attempt_record.py), and leaves the shards in order, so that nobody counts anything else;
- whoever takes over shards that were not left in order counts the oldest request of each entity, the culprit's
  among them (see acquire_shards in leases.sql).

One crash is mostly a kill from outside, so nothing follows from it. A request that has lost two attempts is
suspected: suspects run one at a time, each marked before its turn, and from then on only the one that was marked
is counted. Once can be bad luck, too, where somebody ends one process after the other; twice is not. So the culprit
reaches its limit, and those that happened to run beside it do not.

The count is a column of `pending`, so only what is read from the outbox carries it. That is enough: whoever owns
the shard next got the lease after that process had ended, and its first pass brings the row with the count. An
entry of the same request, however often it was added, does not get past that row: until the pass ends it waits,
and is then dropped because the intake knows the id; afterwards it is old, or a gap (one more pass), or known, too.
"""

from entityq.envelope import Envelope
from entityq.postgres.lease_session import SUSPECT

# Processes: two that anybody may have ended, and two that ended while it was the only suspect that ran. A retry
# policy has no say in it, nor do its attempts count here: a process can end for reasons that are not the handler's.
MAX_ATTEMPTS = 4

_WHAT_TO_DO = "Move what blocks into a handler that is a plain function (def), or into asyncio.to_thread"


def exhausted(lost: int) -> bool:
    """Whether a request is not to be run again."""
    return lost >= MAX_ATTEMPTS


def suspected(lost: int) -> bool:
    """Whether it must run alone among its like, and be marked before it does."""
    return lost >= SUSPECT


def counts(lost: int, *, started: int | None, ended: int) -> bool:
    """Whether the oldest request of its entity has lost an attempt with the incarnation that `ended`.

    `started`: the incarnation that marked it. acquire_shards says the same.
    """
    return not suspected(lost) or started == ended


def exhausted_text(envelope: Envelope, lost: int) -> str:
    """What its caller is told."""
    return (
        f"{envelope.address} ended the processes of {lost} runners, one after the other, while handling "
        f"{envelope.message!r}: it crashed them, or blocked their event loop; it is not run again, and its state is "
        f"unchanged. {_WHAT_TO_DO}"
    )


def given_up_text(envelope: Envelope) -> str:
    """The same for a volatile request: nothing counts its attempts, so the first is the last."""
    return (
        f"{envelope.address} blocked the event loop of its runner while handling {envelope.message!r}, and the "
        f"runner had to end its process; a volatile message is not run again. {_WHAT_TO_DO}"
    )
