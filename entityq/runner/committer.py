"""The commit of many turns in one statement, on the connection that holds the runner's leases.

A batch that fails as a whole (a row lock, a data error, a writer that came between) is halved until the
turn that causes it is alone, so that it does not fail its neighbours.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from psycopg import Error as PostgresError
from psycopg.errors import DivisionByZero, UniqueViolation

from entityq.address import entity_hash, signed64
from entityq.postgres.channels import TOLD_OF_TIMERS_WITHIN, timers_channel
from entityq.postgres.outbox import times_of
from entityq.postgres.queries import load
from entityq.runner.commit import Applied, Commit, Committed, NotApplied, SendConflict, SentRow

COMMIT_TURNS = load("turns.sql")["commit_turns"]

# A concurrent writer that the next try, with another snapshot, need not meet. (A lock has had its time.)
PASSING = (DivisionByZero, UniqueViolation)
TRIES_ALONE = 3

MISSED = NotApplied("the request is answered, or its entity's state was changed from outside")
CLOSED = NotApplied("it sends to a shard group that is closed: `entityq reshard` is under way", passing=True)

log = logging.getLogger(__name__)


class LeaseStatements(Protocol):
    """Statements on the session that holds the leases, one at a time."""

    @property
    def incarnation(self) -> int: ...

    async def execute(self, query: bytes, parameters: Mapping[str, object]) -> Sequence[tuple[Any, ...]]: ...


class Committer:
    """Commits batches of turns; `epochs` are the leases held right now, by shard id."""

    def __init__(self, session: LeaseStatements, namespace: str, epochs: Mapping[int, int]) -> None:
        self._session = session
        self._namespace = namespace
        self._epochs = epochs

    async def warm_up(self) -> None:
        """Plans the statement, so that the first turn after a takeover does not wait for it. Raises as `flush`."""
        await self._session.execute(COMMIT_TURNS, parameters([], self._namespace))

    async def flush(self, batch: Sequence[Commit]) -> list[Committed | BaseException]:
        """One outcome per commit, in order. Raises LeaseLost when the session is gone."""
        outcomes: dict[int, Committed | BaseException] = {}
        await self._commit(batch, outcomes)
        return [outcomes[id(commit)] for commit in batch]

    def _stale(self, commit: Commit) -> bool:
        tenure = commit.tenure
        return (
            tenure.incarnation != self._session.incarnation
            or self._epochs.get(tenure.shard_id) != tenure.epoch
        )

    async def _commit(
        self, batch: Sequence[Commit], outcomes: dict[int, Committed | BaseException], tries: int = 1
    ) -> None:
        # Before every statement, because a shard can be given up between two of them.
        for commit in batch:
            if self._stale(commit):
                outcomes[id(commit)] = NotApplied("the lease under which the turn started is gone")
        batch = [commit for commit in batch if id(commit) not in outcomes]
        if not batch:
            return
        try:
            rows = await self._session.execute(COMMIT_TURNS, parameters(batch, self._namespace))
        except PostgresError as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._commit(batch[:middle], outcomes)
                await self._commit(batch[middle:], outcomes)
            elif isinstance(error, PASSING) and tries < TRIES_ALONE:
                await self._commit(batch, outcomes, tries + 1)
            else:
                outcomes[id(batch[0])] = error
        else:
            missed: list[Commit] = []
            for commit, outcome in zip(batch, read_outcomes(batch, rows), strict=True):
                if outcome is MISSED and tries == 1:
                    missed.append(commit)
                else:
                    outcomes[id(commit)] = outcome
            # Somebody may have written the row of pending meanwhile: another snapshot finds it.
            await self._commit(missed, outcomes, tries + 1)


def parameters(batch: Sequence[Commit], namespace: str) -> dict[str, object]:
    """The arrays of commit_turns."""
    requests = [commit.request for commit in batch]
    addresses = [request.envelope.address for request in requests]
    sends = [(position, send) for position, commit in enumerate(batch) for send in commit.sends]
    times = times_of([send for _, send in sends])
    dead = [
        (position, commit, commit.given_up)
        for position, commit in enumerate(batch)
        if commit.given_up is not None
    ]
    return {
        "namespace": namespace,
        "positions": list(range(len(batch))),
        "request_ids": [request.request_id for request in requests],
        "shard_ids": [request.shard_id for request in requests],
        "seqs": [request.seq for request in requests],
        "replies": [commit.encoded_reply for commit in batch],
        "outcomes": [int(commit.reply.outcome) for commit in batch],
        "epochs": [commit.tenure.epoch for commit in batch],
        "types": [address.type for address in addresses],
        "entity_ids": [address.id for address in addresses],
        "entity_hashes": [signed64(entity_hash(address.id)) for address in addresses],
        "versions": [commit.version for commit in batch],
        "states": [commit.state for commit in batch],
        "forgets": [commit.forget for commit in batch],
        "state_versions": [commit.state_version for commit in batch],
        "sent_positions": [position for position, _ in sends],
        "sent_request_ids": [send.request_id for _, send in sends],
        "sent_types": [send.address.type for _, send in sends],
        "sent_entity_ids": [send.address.id for _, send in sends],
        "sent_entity_hashes": [signed64(entity_hash(send.address.id)) for _, send in sends],
        "sent_messages": [send.message for _, send in sends],
        "sent_key_digests": [send.key_digest for _, send in sends],
        "sent_payload_hashes": [send.payload_hash for _, send in sends],
        "sent_envelopes": [send.envelope for _, send in sends],
        "sent_due_ats": times["due_ats"],
        "sent_delays": times["delays"],
        "timers_channel": timers_channel(namespace),
        "told_within": TOLD_OF_TIMERS_WITHIN,
        "dead_positions": [position for position, _, _ in dead],
        "dead_request_ids": [commit.request.request_id for _, commit, _ in dead],
        "dead_types": [commit.request.envelope.address.type for _, commit, _ in dead],
        "dead_entity_ids": [commit.request.envelope.address.id for _, commit, _ in dead],
        "dead_messages": [commit.request.envelope.message for _, commit, _ in dead],
        "dead_attempts": [commit.attempts for _, commit, _ in dead],
        "dead_error_types": [cause.type for _, _, cause in dead],
        "dead_errors": [cause.text for _, _, cause in dead],
        "dead_causes": [cause.detail for _, _, cause in dead],
    }


def read_outcomes(batch: Sequence[Commit], rows: Sequence[tuple[Any, ...]]) -> list[Committed]:
    """What commit_turns returned, per turn of the batch."""
    applied: set[object] = set()
    conflicts: dict[object, int] = {}
    closed: set[object] = set()
    stored: dict[object, tuple[int, int]] = {}
    for kind, position, request_id, shard_id, seq in rows:
        if kind == "applied":
            applied.add(position)
        elif kind == "conflict":
            conflicts[position] = request_id
        elif kind == "closed":
            closed.add(position)
        elif kind == "sent":
            stored[request_id] = (shard_id, seq)
    return [
        CLOSED
        if position in closed and position not in conflicts
        else _outcome(commit, position, applied, conflicts, stored)
        for position, commit in enumerate(batch)
    ]


def _outcome(
    commit: Commit,
    position: int,
    applied: set[object],
    conflicts: Mapping[object, int],
    stored: Mapping[object, tuple[int, int]],
) -> Committed:
    if position in applied:
        rows = [SentRow(send, *stored[send.request_id]) for send in commit.sends if send.request_id in stored]
        return Applied(sorted(rows, key=lambda row: row.seq))
    if position in conflicts:
        return SendConflict(conflicts[position])
    return MISSED
