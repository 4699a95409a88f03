"""From sends to rows of the outbox: one statement for many, and every send gets its outcome."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from psycopg import DataError, Error, IntegrityError, ProgrammingError
from psycopg.errors import LockNotAvailable

from entityq.client.backpressure import Backpressure
from entityq.client.held import HeldSends
from entityq.client.publishing import Publishing
from entityq.client.send import Acceptance, Outcome, Send
from entityq.client.settlement import Again, group_closed, index, judge, unknown_type
from entityq.errors import Accepted, MailboxFull, MalformedMessage, PersistenceError
from entityq.postgres.connect import Connection
from entityq.postgres.outbox import (
    NewRequest,
    Stored,
    closed_groups,
    insert_requests,
    read_conflicts,
    set_lock_timeout,
)
from entityq.postgres.session import ConnectionLost, Session
from entityq.retry import RetryPolicy, next_delay

# Seconds: of a whole batch (as connections have it), and of its parts once a row of it is known to wait.
LOCK_TIMEOUT = 0.1
SHORT_LOCK_TIMEOUT = 0.02

# One send is inserted so often before what it meets, and then cannot find, counts as an error.
MAX_VANISHED = 3

# What one row of a batch can be the cause of.
POISON = (DataError, IntegrityError, UnicodeError)
TRANSIENT = (ConnectionLost, PersistenceError, Error)

T = TypeVar("T")

_log = logging.getLogger(__name__)

Outcomes = dict[Send, Outcome]


class Statements(Protocol):
    """A session, or the transaction that one is in."""

    async def run(self, statement: Callable[[Connection], Awaitable[T]]) -> T: ...


class Inserter:
    """`flush` is called by a Batcher: one batch at a time, in the order of sending."""

    def __init__(
        self,
        session: Session,
        namespace: str,
        *,
        tasks: asyncio.TaskGroup,
        connect: Callable[[], Awaitable[Connection]],
        backpressure: Backpressure,
        publishing: Publishing,
        renew: Callable[[Send], NewRequest],
        policy: RetryPolicy,
    ) -> None:
        """`connect` and `tasks` are for what waits in a connection of its own; `renew` gives another id."""
        self._session = session
        self._namespace = namespace
        self._held = HeldSends(connect, self._insert_alone, self._abandon, tasks, policy)
        self._backpressure = backpressure
        self._publishing = publishing
        self._renew = renew
        self._policy = policy
        self._impatient = False

    async def flush(self, sends: Sequence[Send]) -> list[Outcome]:
        """One outcome per send. What was stored is on its way to the streams when this returns."""
        outcomes: Outcomes = {}
        for send in sends:
            digest = send.request.key_digest
            if digest is not None and send in self._held:
                outcomes[send] = self._held.hold(send, digest)
        await self._retrying(sends, outcomes)
        stored = [
            (send.request, place.shard_id, place.seq)
            for send, outcome in outcomes.items()
            if isinstance(outcome, Acceptance) and (place := outcome.to_publish) is not None
        ]
        self._publishing.add(sorted(stored, key=lambda row: row[2]))
        return [outcomes[send] for send in sends]

    # ----- tries

    async def _retrying(self, sends: Sequence[Send], outcomes: Outcomes) -> None:
        clock = asyncio.get_running_loop().time
        began, attempt = clock(), 0
        while left := [send for send in sends if send not in outcomes]:
            attempt += 1
            try:
                await self._insert(await self._admit(left, outcomes), outcomes)
            except TRANSIENT as error:
                left = [send for send in left if send not in outcomes]
                pause = next_delay(self._policy, attempt, clock() - began, random.random)
                if pause is None or isinstance(error, ProgrammingError):
                    self._give_up(left, outcomes, error)
                    return
                reason = reason_of(error)
                _log.warning("client.insert_failed attempt=%d requests=%d: %s", attempt, len(left), reason)
                for send in left:
                    send.trouble = reason
                self._give_up([send for send in left if send.deadline < clock() + pause], outcomes, error)
                await asyncio.sleep(pause)

    def _give_up(self, sends: Sequence[Send], outcomes: Outcomes, error: Exception) -> None:
        for send in sends:
            outcomes[send] = self._abandon(send, error)

    def _abandon(self, send: Send, error: Exception) -> PersistenceError:
        if send.lost:
            self._publishing.burn(1)
        return _not_stored(send, error)

    async def _admit(self, sends: Sequence[Send], outcomes: Outcomes) -> list[Send]:
        """Those for which their shard group has room; a repeat of a lost one may have its place already."""
        fresh = [send for send in sends if not send.lost]
        await self._backpressure.look({send.call.entity.shard_group for send in fresh})
        for send in fresh:
            if not self._backpressure.take(send.call.entity.shard_group):
                outcomes[send] = _no_room(send)
        return [send for send in sends if send not in outcomes]

    # ----- batches

    async def _insert(self, sends: Sequence[Send], outcomes: Outcomes) -> None:
        """Settles all of them, or raises one of TRANSIENT with some of them settled."""
        try:
            await self._insert_whole(sends, outcomes)
        finally:
            if self._impatient:
                self._impatient = False
                await self._set_patience(LOCK_TIMEOUT)

    async def _insert_whole(self, sends: Sequence[Send], outcomes: Outcomes) -> None:
        if not sends:
            return
        try:
            await self.settle(self._session, sends, outcomes)
        except LockNotAvailable as error:
            await self._isolate_waiting(sends, outcomes, error)
        except POISON as error:
            if len(sends) > 1:
                await self._insert_halves(sends, outcomes)
            else:
                outcomes[sends[0]] = _poisoned(sends[0], error)

    async def _insert_halves(self, sends: Sequence[Send], outcomes: Outcomes) -> None:
        sends = [send for send in sends if send not in outcomes]
        middle = len(sends) // 2
        await self._insert_whole(sends[:middle], outcomes)
        await self._insert_whole(sends[middle:], outcomes)

    async def _isolate_waiting(
        self, sends: Sequence[Send], outcomes: Outcomes, error: LockNotAvailable
    ) -> None:
        # Without a context it is the table that is locked. A lost row waits for its own first try, which may
        # still be running in the old session. Neither is the fault of one row.
        if not error.diag.context or any(send.lost for send in sends):
            raise error
        if len(sends) > 1:
            if not self._impatient:
                self._impatient = True
                await self._set_patience(SHORT_LOCK_TIMEOUT)
            await self._insert_halves(sends, outcomes)
            return
        digest = sends[0].request.key_digest
        if digest is None:
            raise error
        outcomes[sends[0]] = self._held.hold(sends[0], digest)

    async def _set_patience(self, seconds: float) -> None:
        await self._session.run(lambda connection: set_lock_timeout(connection, seconds))

    # ----- statements

    async def settle(self, session: Statements, sends: Sequence[Send], outcomes: Outcomes) -> None:
        """An outcome for each of them; raises what `session` does."""
        for _ in range(MAX_VANISHED):
            stored = await self._store(session, sends)
            missing: list[Send] = []
            for send in sends:
                place = stored.get(send.request.request_id)
                if place is not None:
                    outcomes[send] = send.acceptance = Acceptance(send.request.request_id, place)
                elif send.withdrawn:
                    outcomes[send] = _not_stored(send, TimeoutError("its caller waits no more"))
                else:
                    missing.append(send)
            if not missing:
                return
            sends = await self._explain(session, missing, outcomes)
            if not sends:
                return
            sends = await self._refuse_closed(session, sends, outcomes)
            if not sends:
                return
        for send in sends:
            request = send.request
            outcomes[send] = unknown_type(request.address.type, self._namespace, request.request_id)

    async def _store(self, session: Statements, sends: Sequence[Send]) -> dict[int, Stored]:
        async def statement(connection: Connection) -> dict[int, Stored]:
            # Decided here, with nothing awaited before it is sent: who gave up was told "not accepted".
            taken = [send for send in sends if not send.withdrawn]
            for send in taken:
                send.started = True
            requests = [send.request for send in taken]
            return await insert_requests(connection, self._namespace, requests) if taken else {}

        try:
            return await session.run(statement)
        except (ConnectionLost, asyncio.CancelledError):
            for send in sends:
                send.lost |= send.started
            raise
        finally:
            for send in sends:
                send.started = False

    async def _explain(self, session: Statements, missing: Sequence[Send], outcomes: Outcomes) -> list[Send]:
        """Settles what met a known request; returns what is to be inserted again."""
        requests = [send.request for send in missing]
        known = index(await session.run(lambda connection: read_conflicts(connection, requests)))
        again: list[Send] = []
        for send in missing:
            verdict = judge(send, known)
            if not isinstance(verdict, Again):
                outcomes[send] = verdict
                send.acceptance = verdict if isinstance(verdict, Acceptance) else None
                continue
            if verdict is Again.COLLISION:
                send.request, send.lost = self._renew(send), False
            again.append(send)
        return again

    async def _refuse_closed(
        self, session: Statements, sends: Sequence[Send], outcomes: Outcomes
    ) -> Sequence[Send]:
        """Returns those whose group takes requests."""
        requests = [send.request for send in sends]
        closed = await session.run(lambda connection: closed_groups(connection, self._namespace, requests))
        for send in sends:
            group = closed.get(send.request.address.type)
            if group is not None:
                # A lost try may still be running: who closed the group waits for its end, nobody else does.
                accepted = Accepted.UNKNOWN if send.lost else Accepted.NO
                if send.lost:
                    self._publishing.burn(1)
                outcomes[send] = group_closed(group, accepted=accepted, request_id=send.request.request_id)
        return [send for send in sends if send not in outcomes]

    async def _insert_alone(self, session: Session, send: Send) -> Outcome:
        """For a held send. Raises ConnectionLost, PersistenceError, LockNotAvailable, another psycopg.Error."""
        outcomes: dict[Send, Outcome] = {}
        try:
            await self.settle(session, [send], outcomes)
        except POISON as error:
            return _poisoned(send, error)
        outcome = outcomes[send]
        if isinstance(outcome, Acceptance) and (place := outcome.to_publish) is not None:
            self._publishing.add([(send.request, place.shard_id, place.seq)])
        return outcome


def reason_of(error: Exception) -> str:
    return error.what if isinstance(error, PersistenceError) else " ".join(str(error).split())


def _not_stored(send: Send, error: Exception) -> PersistenceError:
    return PersistenceError(
        f"{send.request.message} to {send.request.address} could not be stored: {reason_of(error)}",
        accepted=Accepted.UNKNOWN if send.lost else Accepted.NO,
        request_id=send.request.request_id,
        advice="Send it again, with the same primary key if it has one.",
    )


def _no_room(send: Send) -> MailboxFull:
    return MailboxFull(
        f"Shard group {send.call.entity.shard_group} has too many unanswered requests (max_pending)",
        request_id=send.request.request_id,
        advice="Send it again later, or start more workers.",
    )


def _poisoned(send: Send, error: Exception) -> MalformedMessage:
    return MalformedMessage(
        f"{send.request.message} to {send.request.address} cannot be stored: {reason_of(error)}",
        request_id=send.request.request_id,
    )
