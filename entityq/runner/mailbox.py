"""Admission to mailboxes: pure decisions, so that a full mailbox keeps the order and stops no neighbour."""

from collections import deque
from collections.abc import Callable
from enum import Enum

from entityq.runner.request import Request


class Admission(Enum):
    ADMIT = "admit"
    DEFER = "defer"  # persisted: it stays in the outbox, and the entity reads from there
    REFUSE = "refuse"  # volatile: answered with MailboxFull


def admission(
    *, persisted: bool, deferred: bool, resident: bool, queued: int, capacity: int, room_for_residents: bool
) -> Admission:
    """Whether a request may enter its entity's mailbox.

    Args:
        deferred: the entity already reads from the outbox; entering now would overtake.
        resident: the entity has an activation; if not, `room_for_residents` must hold.
        queued: requests in the mailbox and running, of `capacity`.
    """
    if persisted and deferred:
        return Admission.DEFER
    if queued < capacity and (resident or room_for_residents):
        return Admission.ADMIT
    return Admission.DEFER if persisted else Admission.REFUSE


def next_to_start(
    mailbox: deque[tuple[Request, bool]],
    *,
    ordered_busy: bool,
    admits: Callable[[Request], bool] = lambda _: True,
) -> int | None:
    """The place in the mailbox of the request to start now.

    `mailbox` holds (request, concurrent) pairs. Ordered requests start one at a time and in order;
    concurrent ones may overtake. `admits`: whether its limits let one start now.
    """
    for place, (request, concurrent) in enumerate(mailbox):
        if concurrent or not ordered_busy:
            if admits(request):
                return place
            # What is behind an ordered one waits with it.
            ordered_busy = ordered_busy or not concurrent
    return None
