"""Many sends as one: stored in one transaction, or none of them."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from psycopg import Error, ProgrammingError
from psycopg.errors import LockNotAvailable

from entityq.client.backpressure import Backpressure
from entityq.client.inserter import POISON, TRANSIENT, Inserter, reason_of
from entityq.client.publishing import Publishing
from entityq.client.send import Acceptance, Outcome, Send
from entityq.client.settlement import GroupClosed
from entityq.errors import (
    Accepted,
    EntityQError,
    MailboxFull,
    MalformedMessage,
    PayloadTooLarge,
    PersistenceError,
    PrimaryKeyConflict,
    ReplyExpired,
)
from entityq.postgres.connect import Connection
from entityq.postgres.outbox import begin, commit, rollback
from entityq.postgres.session import ConnectionLost, Session
from entityq.retry import RetryPolicy, next_delay

T = TypeVar("T")

# Of one statement.
MAX_STATEMENT = 1_000
MAX_STATEMENT_BYTES = 4 * 1024 * 1024

# Of one transaction, which has to end within a statement's deadline.
MAX_MANY = 10_000
MAX_MANY_BYTES = 32 * 1024 * 1024

Settled = Acceptance | EntityQError

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Many:
    """`deadline` is the time of the loop by which all must be accepted. `committing`: the end of their
    transaction is under way; `lost`: it will never be told, only a repeat with the same request ids finds out;
    `abandoned`: the caller waits no more; `trouble` is why they are not stored yet; `settled` is there as soon as
    they are stored, which can be before the batches around them are."""

    sends: Sequence[Send]
    deadline: float
    committing: bool = False
    lost: bool = False
    abandoned: bool = False
    trouble: str = ""
    settled: list[Settled] | None = None

    @property
    def size(self) -> int:
        return sum(len(send.request.envelope) for send in self.sends)

    @property
    def accepted(self) -> Accepted:
        """When it ends now, without an answer."""
        return Accepted.UNKNOWN if self.committing or self.lost else Accepted.NO

    def lose(self) -> None:
        self.lost = True
        for send in self.sends:
            send.lost = True

    def __str__(self) -> str:
        return f"A batch of {len(self.sends):,} requests"


class OrderedInserts:
    """What one client sends is stored in its order, single sends and many as one alike."""

    def __init__(
        self,
        single: Callable[[Sequence[Send]], Awaitable[list[Outcome]]],
        many: Callable[[Many], Awaitable[list[Settled] | EntityQError]],
    ) -> None:
        self._single = single
        self._many = many

    async def flush(self, items: Sequence[Send | Many]) -> list[Any]:
        """One outcome per item."""
        outcomes: list[Any] = []
        sends: list[Send] = []
        for item in items:
            if isinstance(item, Send):
                sends.append(item)
                continue
            if sends:
                outcomes += await self._single(sends)
                sends = []
            outcomes.append(await self._many(item))
        return outcomes + await self._single(sends) if sends else outcomes


class KeyHeld(PersistenceError):
    """Somebody else is inserting one of the keys, and has not committed yet: tried again for a while."""


class ManyInserter:
    """`insert` is called for one at a time, between the batches of single sends."""

    def __init__(
        self,
        session: Session,
        inserter: Inserter,
        *,
        backpressure: Backpressure,
        publishing: Publishing,
        policy: RetryPolicy,
    ) -> None:
        """`session` is the inserter's: what one client sends stays in order."""
        self._session = session
        self._inserter = inserter
        self._backpressure = backpressure
        self._publishing = publishing
        self._policy = policy

    async def insert(self, many: Many) -> list[Settled] | EntityQError:
        """One outcome per send, or why none is stored. What was stored is on its way to the streams."""
        outcome = await self._retrying(many)
        if isinstance(outcome, EntityQError):
            if many.lost:
                outcome.accepted = Accepted.UNKNOWN
                self._publishing.burn(len(many.sends))
            return outcome
        stored = [
            (send.request, place.shard_id, place.seq)
            for send, settled in zip(many.sends, outcome, strict=True)
            if isinstance(settled, Acceptance) and (place := settled.to_publish) is not None
        ]
        self._publishing.add(sorted(stored, key=lambda row: row[2]))
        return outcome

    async def _retrying(self, many: Many) -> list[Settled] | EntityQError:
        clock = asyncio.get_running_loop().time
        began = clock()
        for attempt in count(1):
            try:
                return await self._try(many)
            except _Refused as refused:
                return refused.error
            except POISON as error:
                return MalformedMessage(f"{many} cannot be stored: {reason_of(error)}")
            except TRANSIENT as error:
                if isinstance(error, LockNotAvailable) and not many.lost:
                    return _held(many)
                many.trouble = reason_of(error)
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                late = pause is None or clock() + pause > many.deadline
                if pause is None or late or isinstance(error, ProgrammingError):
                    return _not_stored(many, many.trouble)
            _log.warning(
                "client.insert_failed attempt=%d requests=%d: %s", attempt, len(many.sends), many.trouble
            )
            await asyncio.sleep(pause)
        raise AssertionError("count() does not end")

    async def _try(self, many: Many) -> list[Settled]:
        if not many.lost:  # it may have its place already
            await self._admit(many)
        try:
            return await self._session.run(lambda connection: self._transaction(connection, many))
        except (ConnectionLost, asyncio.CancelledError):
            if many.committing:
                many.lose()
            raise
        finally:
            many.committing = False

    async def _admit(self, many: Many) -> None:
        groups = [send.call.entity.shard_group for send in many.sends]
        await self._backpressure.look(set(groups))
        for group in groups:
            if not self._backpressure.take(group):
                raise _Refused(
                    MailboxFull(
                        f"{many} does not fit: shard group {group} has too many unanswered requests (max_pending)",
                        advice="Send it again later, or start more workers.",
                    )
                )

    async def _transaction(self, connection: Connection, many: Many) -> list[Settled]:
        # Decided here, with nothing awaited before the transaction begins: who gave up was told "not accepted".
        if many.abandoned and not many.lost:
            raise _Refused(_not_stored(many, "its caller waits no more"))
        await begin(connection)
        try:
            settled = await self._store(connection, many)
        except (Error, UnicodeError, _Refused):
            # Not where it was cancelled: the answer to this would be waited for without a deadline. Whoever
            # cancels closes the connection.
            if not connection.closed:
                await rollback(connection)
            raise
        many.committing = True
        await commit(connection)
        many.settled = settled
        return settled

    async def _store(self, connection: Connection, many: Many) -> list[Settled]:
        statements = _Joined(connection)
        outcomes: dict[Send, Outcome] = {}
        for part in parts(many.sends):
            await self._inserter.settle(statements, part, outcomes)
        return [_settled(outcomes[send]) for send in many.sends]


class _Joined:
    """Statements of the transaction that a connection is in."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def run(self, statement: Callable[[Connection], Awaitable[T]]) -> T:
        return await statement(self._connection)


class _Refused(Exception):
    """Nothing is to be stored, and trying again at once would not help."""

    def __init__(self, error: EntityQError) -> None:
        super().__init__(error)
        self.error = error


def parts(sends: Sequence[Send]) -> Iterator[list[Send]]:
    """What one statement carries each, in order."""
    part: list[Send] = []
    size = 0
    for send in sends:
        size += len(send.request.envelope)
        if part and (len(part) >= MAX_STATEMENT or size > MAX_STATEMENT_BYTES):
            yield part
            part, size = [], len(send.request.envelope)
        part.append(send)
    yield part


def refuse_too_many(many: Many) -> None:
    """Raises PayloadTooLarge for what would take too long as one transaction."""
    if len(many.sends) > MAX_MANY or many.size > MAX_MANY_BYTES:
        raise PayloadTooLarge(
            f"{many}, of {many.size:,} bytes, is above the limit: {MAX_MANY:,} requests, "
            f"{MAX_MANY_BYTES // 1024**2} MiB",
            advice="Send it in parts.",
        )


def _settled(outcome: Outcome) -> Settled:
    """Raises _Refused for what keeps the whole batch out."""
    if isinstance(outcome, Acceptance | PrimaryKeyConflict | ReplyExpired):
        return outcome
    if isinstance(outcome, EntityQError):
        raise _Refused(outcome)
    raise AssertionError(f"{outcome!r} is no outcome of a transaction")


def _held(many: Many) -> KeyHeld:
    return KeyHeld(
        f"{many} was not stored: somebody else is inserting a request with one of its primary keys, and has "
        "not committed",
        advice="Send it again.",
    )


def _not_stored(many: Many, reason: str) -> PersistenceError:
    return PersistenceError(
        f"{many} could not be stored: {reason}",
        accepted=many.accepted,
        advice="Send it again; only those with a primary key are then known.",
    )


# What the acceptor tries again: the way is free for others meanwhile.
PASSING = (MailboxFull, GroupClosed, KeyHeld)
