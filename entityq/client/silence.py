"""Why there is no reply: what the live runners say about it at the end of a caller's patience."""

from collections.abc import Sequence

from entityq.call import Call
from entityq.errors import (
    Accepted,
    EntityNotAssigned,
    EntityQError,
    RunnerNotRegistered,
    RunnerUnavailable,
    SendTimeout,
)
from entityq.postgres.membership import Member

_STAYS = "It will be answered: look for it with `entityq result`, or repeat it with its primary key."


def explain_silence(
    call: Call, request_id: int, timeout: float, members: Sequence[Member] | None
) -> EntityQError:
    """`members` None: nobody could be asked."""
    accepted = Accepted.YES if call.message.persisted else Accepted.NO
    advice = _STAYS if call.message.persisted else "Send it again."
    what = f"No reply from {call.address} to {call.message.name} within {timeout:g} s"
    group = call.entity.shard_group
    serving = [member for member in members or () if group in member.groups]
    cls: type[EntityQError] = SendTimeout
    if members is None or any(call.address.type in member.types for member in serving):
        if not call.message.persisted and serving and all(member.draining for member in serving):
            what, cls = f"{what}: its shard is between owners", EntityNotAssigned
    elif serving:
        what, cls = f"{what}: no live runner knows the type {call.address.type}", RunnerNotRegistered
    else:
        what, cls = f"{what}: no live runner serves the shard group {group}", RunnerUnavailable
    return cls(what, accepted=accepted, request_id=request_id, advice=advice)
