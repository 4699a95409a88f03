"""What this runner's code is too old for stays pending, in order, until a runner with newer code has the shard."""

import logging

from entityq.errors import RunnerNotRegistered
from entityq.runner.answers import Answers
from entityq.runner.deferrals import Deferrals
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.request import Request

log = logging.getLogger(__name__)


def leave_for_newer_code(
    owned: OwnedShard, request: Request, why: str, *, event: str, answers: Answers, deferrals: Deferrals
) -> None:
    """A persisted request is not answered, and what the entity gets from now on waits behind it.

    The intake goes on remembering it, so that no sweep brings it again. A volatile one is refused.
    """
    envelope = request.envelope
    if envelope.address not in owned.blocked:
        log.warning(
            "%s shard=%s request=%s entity=%s message=%s: %s; left for a runner whose code knows it",
            event,
            owned.shard,
            request.request_id,
            envelope.address,
            envelope.message,
            why,
        )
    if not envelope.persisted:
        answers.refuse(request, RunnerNotRegistered, why)
        return
    owned.blocked.add(envelope.address)
    # Feeding it would bring the same requests again and again.
    deferrals.leave(owned.shard_id, envelope.address)
    if request.entry_id is not None:
        answers.acknowledge(owned, [request.entry_id])
