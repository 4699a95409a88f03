"""The tables of a cluster as dictionaries: what Postgres does for a client and a runner, without Postgres."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count

from entityq.address import Address
from entityq.client.send import Acceptance, Send
from entityq.client.settlement import repeat
from entityq.errors import EntityQError
from entityq.postgres.outbox import Known, NewRequest, Stored
from entityq.reply import Outcome
from entityq.runner.commit import Applied, Commit, Committed, NotApplied, SendConflict, SentRow
from entityq.status import EntityStatus
from entityq.stored_state import StoredState

# All entities live in one shard.
SHARD = 0


@dataclass(frozen=True, slots=True)
class _Entity:
    stored: StoredState
    outcome: Outcome
    updated_at: datetime


class MemoryOutbox:
    """Requests by id and by primary key, and the entities' states. Each call is one transaction."""

    def __init__(self) -> None:
        self._requests: dict[int, Known] = {}
        self._keys: dict[bytes, int] = {}
        self._entities: dict[Address, _Entity] = {}
        self._seqs = count(1)

    def insert(self, send: Send) -> Acceptance:
        """Raises PrimaryKeyConflict."""
        first = self._first(send.request)
        if first is None:
            row = self._add(send.request)
            return Acceptance(row.request_id, Stored(row.shard_id, row.seq))
        outcome = repeat(send, first)
        if isinstance(outcome, EntityQError):
            raise outcome
        return outcome

    async def load(self, shard_id: int, address: Address) -> StoredState:
        del shard_id
        entity = self._entities.get(address)
        return StoredState(0, None) if entity is None else entity.stored

    async def commit(self, commit: Commit) -> Committed:
        """Wholly or not at all, as `commit_turns` in turns.sql."""
        request_id = commit.request.request_id
        row = self._requests.get(request_id)
        if row is None or row.reply is not None:
            return NotApplied("the request is answered")
        stored = await self.load(row.shard_id, row.address)
        if commit.version not in (None, stored.version):
            return NotApplied("the entity's state was changed from outside")
        for send in commit.sends:
            first = self._first(send)
            if first is not None and first.payload_hash != send.payload_hash:
                return SendConflict(first.request_id)
        self._requests[request_id] = replace(row, reply=commit.encoded_reply)
        if commit.forget:
            self._forget(row)
        elif commit.version is not None:
            self._save(row.address, stored, commit)
        new = [self._add(send) for send in commit.sends if self._first(send) is None]
        sends = {send.request_id: send for send in commit.sends}
        return Applied([SentRow(sends[row.request_id], row.shard_id, row.seq) for row in new])

    def status(self, address: Address) -> EntityStatus:
        entity = self._entities.get(address)
        updated_at = None if entity is None else entity.updated_at
        if any(row.address == address and row.reply is None for row in self._requests.values()):
            return EntityStatus("processing", updated_at)
        if entity is None:
            return EntityStatus("idle")
        return EntityStatus("complete" if entity.outcome is Outcome.SUCCESS else "failed", updated_at)

    def _first(self, request: NewRequest) -> Known | None:
        """The request that has its primary key."""
        first = None if request.key_digest is None else self._keys.get(request.key_digest)
        return None if first is None else self._requests[first]

    def _add(self, request: NewRequest) -> Known:
        row = Known(
            request_id=request.request_id,
            shard_id=SHARD,
            seq=next(self._seqs),
            address=request.address,
            message=request.message,
            key_digest=request.key_digest,
            payload_hash=request.payload_hash,
            reply=None,
        )
        self._requests[row.request_id] = row
        if row.key_digest is not None:
            self._keys[row.key_digest] = row.request_id
        return row

    def _save(self, address: Address, stored: StoredState, commit: Commit) -> None:
        state, written_by = stored.state, stored.state_version
        if commit.state is not None:
            state, written_by = commit.state, commit.state_version
        self._entities[address] = _Entity(
            StoredState(stored.version + 1, state, written_by), commit.reply.outcome, datetime.now(UTC)
        )

    def _forget(self, forgetting: Known) -> None:
        """Answered requests before the forgetting one go, with their keys."""
        self._entities.pop(forgetting.address, None)
        for row in list(self._requests.values()):
            if row.address == forgetting.address and row.seq < forgetting.seq and row.reply is not None:
                del self._requests[row.request_id]
                if row.key_digest is not None:
                    del self._keys[row.key_digest]
