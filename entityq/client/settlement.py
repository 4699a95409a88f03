"""What the outbox's answer means for each send: pure decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from entityq.client.send import Acceptance, Send
from entityq.errors import Accepted, EntityQError, PersistenceError, PrimaryKeyConflict, ReplyExpired
from entityq.postgres.outbox import Known, NewRequest, Stored


class Again(Enum):
    """Why a send must be inserted once more."""

    COLLISION = "another client's request has the same id"
    VANISHED = "what it met is gone"


@dataclass(frozen=True, slots=True)
class KnownRequests:
    """By request id and by key digest."""

    by_id: Mapping[int, Known] = field(default_factory=dict[int, Known])
    by_digest: Mapping[bytes, Known] = field(default_factory=dict[bytes, Known])


def index(known: Sequence[Known]) -> KnownRequests:
    return KnownRequests(
        {request.request_id: request for request in known},
        {request.key_digest: request for request in known if request.key_digest is not None},
    )


def judge(send: Send, known: KnownRequests) -> Acceptance | EntityQError | Again:
    """Of a send that the insert did not return."""
    request = send.request
    same_id = known.by_id.get(request.request_id)
    if same_id is not None:
        # Only a send whose statement was lost can meet itself: an equal request of somebody else is not it.
        if send.lost and _is_same(request, same_id):
            stored = Stored(same_id.shard_id, same_id.seq, timed=request.waits)
            return Acceptance(request.request_id, stored)
        return Again.COLLISION
    first = None if request.key_digest is None else known.by_digest.get(request.key_digest)
    return Again.VANISHED if first is None else repeat(send, first)


def repeat(send: Send, first: Known) -> Acceptance | PrimaryKeyConflict | ReplyExpired:
    """Of a send whose primary key is known: `first` has it."""
    request = send.request
    if first.payload_hash != request.payload_hash:
        return PrimaryKeyConflict(
            f"{request.address} was sent {request.message} with primary key {send.call.primary_key!r} "
            "and another payload before",
            request_id=first.request_id,
            advice="Repeat it with the payload of the first request, or use another key.",
        )
    if first.expired:
        return ReplyExpired(
            f"{request.address} has answered {request.message} with primary key {send.call.primary_key!r}, and the "
            "reply is no longer kept",
            request_id=first.request_id,
            advice="It was applied: do not send it again under another key.",
        )
    return Acceptance(first.request_id, None, duplicate=True, reply=first.reply)


def _is_same(request: NewRequest, stored: Known) -> bool:
    return (
        stored.address == request.address
        and stored.message == request.message
        and stored.payload_hash == request.payload_hash
        and stored.key_digest == request.key_digest
    )


class GroupClosed(PersistenceError):
    """A shard group takes no requests now: the send is tried again for a while."""


def group_closed(
    group: str, *, accepted: Accepted = Accepted.NO, request_id: int | None = None
) -> GroupClosed:
    return GroupClosed(
        f"The shard group {group} is closed: `entityq reshard` is under way",
        accepted=accepted,
        request_id=request_id,
        advice="Send it again when it is finished, with the same primary key if it has one; "
        "`entityq reshard --status` tells how far it is.",
    )


def unknown_type(type_: str, namespace: str, request_id: int | None = None) -> PersistenceError:
    return PersistenceError(
        f"The cluster {namespace} has no entity type {type_}",
        request_id=request_id,
        advice="Start a worker, or a client, whose app has it.",
    )
