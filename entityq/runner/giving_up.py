"""Turns that are not applied because of what they want to write, and requests that are given up."""

import logging

from psycopg import DataError
from psycopg import Error as PostgresError
from psycopg.errors import DivisionByZero
from psycopg.transaction import OutOfOrderTransactionNesting

from entityq.cause import cause_of
from entityq.errors import EntityDefect, PrimaryKeyConflict
from entityq.replies import defect_reply
from entityq.runner.commit import Commit, NotApplied, SendConflict
from entityq.runner.defect import Defect
from entityq.runner.request import Request
from entityq.runner.turn import TurnLimits, handler_defect

log = logging.getLogger(__name__)


def refused(
    request: Request, outcome: NotApplied | SendConflict | PostgresError, limits: TurnLimits
) -> Defect | None:
    """What to store instead, or None when the turn must be dropped.

    Only what the turn itself wants to write can be its defect; a lock, a full disk and the like pass.
    """
    if isinstance(outcome, SendConflict):
        what = (
            f"the turn sends a request whose primary key is known, with another payload, as request "
            f"{outcome.first_request_id}; nothing of the turn was applied"
        )
        log.error(
            "turn.send_conflict request=%s entity=%s: %s", request.request_id, request.envelope.address, what
        )
        error = PrimaryKeyConflict(what, request_id=outcome.first_request_id)
        return Defect(error, defect_reply(request.request_id, EntityDefect, what, limits.reply), lasting=True)
    # The statement's own word for "somebody came between" is a division by zero.
    if isinstance(outcome, DataError | OutOfOrderTransactionNesting) and not isinstance(
        outcome, DivisionByZero
    ):
        return handler_defect(request, outcome, limits, lasting=True)
    return None


def give_up(commit: Commit, defect: Defect) -> None:
    """Nothing of the turn is written but its reply."""
    commit.reply, commit.encoded_reply = defect.reply, defect.reply.encode()
    commit.state, commit.sends = None, []
    commit.given_up, commit.attempts = cause_of(defect.error), commit.request.attempt


def log_given_up(commit: Commit) -> None:
    envelope = commit.request.envelope
    log.error(
        "request.dead_letter request=%s entity=%s message=%s attempts=%s: `entityq dead-letters show %s` has the cause",
        envelope.request_id,
        envelope.address,
        envelope.message,
        commit.attempts,
        envelope.request_id,
    )
