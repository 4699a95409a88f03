"""What a turn raised and did not declare, and whether another attempt could end in another way."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from entityq.errors import (
    Accepted,
    EntityDefect,
    Interrupted,
    MalformedMessage,
    PayloadTooLarge,
    PrimaryKeyConflict,
    ReplyExpired,
    SignalTimeout,
)
from entityq.reply import Reply
from entityq.retry import RetryPolicy, next_delay
from entityq.runner.request import Request

# The same code with the same arguments and the same state would raise them again.
_LASTING = (MalformedMessage, PayloadTooLarge, PrimaryKeyConflict, ReplyExpired, SignalTimeout)


@dataclass(frozen=True, slots=True, eq=False)
class Defect:
    """`reply` is what the caller gets when it is given up; `lasting`: at once."""

    error: BaseException
    reply: Reply
    lasting: bool = False


def is_lasting(error: BaseException) -> bool:
    """Whether to give up at once. An ask that is repeated joins the first one, and gets the same reply."""
    if isinstance(error, EntityDefect | Interrupted):
        return error.accepted is Accepted.YES
    return isinstance(error, _LASTING)


def next_attempt(
    policy: RetryPolicy,
    request: Request,
    defect: Defect,
    *,
    began: float,
    now: float,
    jitter: Callable[[], float] = random.random,
) -> float | None:
    """Seconds until the next attempt, after the one that `began` then; None: give up.

    Attempts that were lost with their process do not count here: they have a limit of their own.
    """
    if defect.lasting:
        return None
    since = began if request.failing_since is None else min(began, request.failing_since)
    return next_delay(policy, request.retries + 1, now - since, jitter)
