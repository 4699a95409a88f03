"""The transaction that the SQL of a handler, and the end of its turn, are part of.

begin -> epoch -> handler's SQL -> hold the shard -> reply, state and sends -> commit

Whatever does not get as far as the commit is rolled back, with the handler's SQL.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NoReturn, Protocol

from psycopg import AsyncConnection, Connection, Error
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.transaction import OutOfOrderTransactionNesting

from entityq.errors import EntityQError, PersistenceError
from entityq.ports import OwnTransaction
from entityq.postgres.queries import load
from entityq.postgres.transaction import (
    AnyTurnConnection,
    AsyncTurnConnection,
    BlockingTurnConnection,
    Fence,
    TurnConnections,
)
from entityq.reply import Outcome, Reply
from entityq.runner.commit import Applied, Commit, Committed, NotApplied, Tenure
from entityq.runner.committer import COMMIT_TURNS, parameters, read_outcomes
from entityq.runner.defect import Defect
from entityq.runner.misuse import ENDED, WRONG, of_the_other_kind
from entityq.runner.request import Request
from entityq.runner.turn import TurnLimits, handler_defect

READ_FATE = load("transaction.sql")["read_fate"]

GONE = "the lease under which the turn started is gone"

# Seconds for which the fate of a commit is asked for, and between two questions.
FATE_DEADLINE = 5.0
FATE_PAUSE = 0.05

# (query, parameters) on the session that holds the leases.
Execute = Callable[[bytes, Mapping[str, object]], Awaitable[Sequence[tuple[Any, ...]]]]


class HandlerTransaction(OwnTransaction, Protocol):
    """The transaction of one turn, if its handler begins one. Implemented here, and by entityq.testing.

    `refusal`: why the turn can be neither applied nor answered, and has to be dropped; else None. `open`: what the
    handler did is to be committed with the turn.
    """

    @property
    def refusal(self) -> NotApplied | None: ...

    @property
    def open(self) -> bool: ...

    async def begin_for(self, *, is_async: bool) -> None:
        """For a message that is declared transactional; `refusal` says whether it cannot."""
        ...

    async def settle(self, result: Reply | Defect, limits: TurnLimits) -> Reply | Defect:
        """After the handler: holds the shard where it succeeded, or else undoes what it did.

        What the handler returned, or the defect that it has made of its transaction.
        """
        ...

    async def commit(self, commit: Commit) -> Committed:
        """Reply, state and sends, with what the handler did. Raises psycopg.Error; then nothing is committed."""
        ...

    async def end(self) -> None:
        """The turn is over. What was neither committed nor rolled back is ended with its connection."""
        ...


class Transactions:
    """Those of one incarnation.

    Args:
        epochs: the leases held right now, by shard id.
        execute: runs a statement on the session that holds them.
    """

    def __init__(
        self,
        connections: TurnConnections,
        fence: Fence,
        *,
        epochs: Mapping[int, int],
        execute: Execute,
    ) -> None:
        self._connections = connections
        self.fence = fence
        self._epochs = epochs
        self.execute = execute

    def of_turn(
        self, request: Request, tenure: Tenure, waiting: Callable[[], AbstractContextManager[None]]
    ) -> "TurnTransaction":
        """`waiting`: entered while the turn waits for a connection: it then holds no place that others may need."""
        return TurnTransaction(self, request, tenure, waiting)

    def end(self) -> None:
        """Nothing of them commits any more."""
        self._connections.end()

    async def ended(self, seconds: float) -> None:
        """After `end`. Waits for so long until handlers have let their connections go."""
        await self._connections.ended(seconds)

    def held(self, tenure: Tenure) -> bool:
        return self._epochs.get(tenure.shard_id) == tenure.epoch

    async def take(
        self, waiting: Callable[[], AbstractContextManager[None]], *, blocking: bool
    ) -> AnyTurnConnection:
        """Raises PersistenceError."""
        with waiting() if self._connections.all_busy else nullcontext():
            if blocking:
                return await self._connections.take_blocking()
            return await self._connections.take_async()

    async def give_back(self, connection: AnyTurnConnection) -> None:
        await self._connections.give_back(connection)

    def give_up(self, connection: AnyTurnConnection) -> None:
        self._connections.give_up(connection)


class TurnTransaction:
    """A HandlerTransaction, made by `Transactions.of_turn`."""

    def __init__(
        self,
        transactions: Transactions,
        request: Request,
        tenure: Tenure,
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.refusal: NotApplied | None = None
        self._transactions = transactions
        self._request = request
        self._tenure = tenure
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._beginning = asyncio.Lock()
        self._connection: AnyTurnConnection | None = None
        self._id = ""
        self._open = False
        self._handler_ended = False

    @property
    def open(self) -> bool:
        return self._open

    # ----- OwnTransaction: what the handler does

    @property
    def connection(self) -> AsyncConnection[TupleRow]:
        begun = self._begun()
        if isinstance(begun, AsyncTurnConnection):
            return begun.connection
        raise of_the_other_kind("self.context.blocking_connection")

    @property
    def blocking_connection(self) -> Connection[TupleRow]:
        begun = self._begun()
        if isinstance(begun, BlockingTurnConnection):
            return begun.connection
        raise of_the_other_kind("self.context.connection")

    async def begin(self) -> AsyncConnection[TupleRow]:
        if asyncio.get_running_loop() is not self._loop:
            raise EntityQError(
                "this handler is a plain function, which runs in a thread of its own",
                advice="Write `with self.context.transaction() as connection`, without async.",
            )
        await self._ensure(blocking=False)
        return self.connection

    def begin_blocking(self) -> Connection[TupleRow]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            beginning = asyncio.run_coroutine_threadsafe(self._ensure(blocking=True), self._loop)
            beginning.result()
            return self.blocking_connection
        raise EntityQError(
            "this would block the event loop",
            advice="Write `async with self.context.transaction() as connection`.",
        )

    # ----- the turn, in the order of the calls

    async def begin_for(self, *, is_async: bool) -> None:
        with suppress(EntityQError):
            await self._ensure(blocking=not is_async)

    async def settle(self, result: Reply | Defect, limits: TurnLimits) -> Reply | Defect:
        self._handler_ended = True
        async with self._beginning:  # what the handler began, and did not wait for
            if self._connection is None or self.refusal is not None:
                return result
        try:
            if not isinstance(result, Defect) and result.outcome is Outcome.SUCCESS:
                await self._hold(self._connection)
                return result
        except (EntityQError, Error) as error:
            if self.refusal is None:
                result = handler_defect(self._request, error, limits)
        await self.roll_back()
        return result

    async def commit(self, commit: Commit) -> Committed:
        connection = self._begun()
        try:
            rows = await connection.execute(
                COMMIT_TURNS, parameters([commit], self._transactions.fence.namespace)
            )
            (outcome,) = read_outcomes([commit], rows)
            if isinstance(outcome, Applied):
                return await self._committed(connection, commit, outcome)
        except OutOfOrderTransactionNesting:
            self.abandon()  # the handler still has a block of it
            raise
        except Error:
            await self.roll_back()
            raise
        await self.roll_back()
        return outcome

    async def roll_back(self) -> None:
        """Nothing of it is committed. The connection is given up where it does not do that in order."""
        connection = self._connection
        if connection is None or not self._open:
            return
        if connection.pgconn.transaction_status in _UNDER_WAY:
            self.abandon()  # it would wait for the statement
            return
        try:
            await connection.roll_back()
        except Error:
            self.abandon()
        else:
            self._open = False

    async def end(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._open or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            self.abandon()
            return
        self._connection = None
        await self._transactions.give_back(connection)

    def abandon(self) -> None:
        """Ends the transaction with its connection."""
        connection, self._connection = self._connection, None
        self._open = False
        if connection is not None:
            self._transactions.give_up(connection)

    # ----- begin

    async def _ensure(self, *, blocking: bool) -> None:
        async with self._beginning:
            if self._handler_ended:
                raise EntityQError(
                    f"the turn of request {self._request.request_id} is over: it gets no transaction any more",
                    advice="Await everything that a handler starts before it returns.",
                )
            if self._connection is None:
                await self._begin(blocking=blocking)

    async def _begin(self, *, blocking: bool) -> None:
        try:
            connection = await self._transactions.take(self._waiting, blocking=blocking)
        except PersistenceError as error:
            self.refusal = NotApplied(error.what, passing=True)
            raise
        try:
            await self._enter(connection)
        except BaseException:
            self._transactions.give_up(connection)
            raise
        self._connection = connection
        self._open = True

    async def _enter(self, connection: AnyTurnConnection) -> None:
        tenure, fence = self._tenure, self._transactions.fence
        try:
            found = await fence.begin(connection, tenure.shard_id, tenure.epoch)
        except Error as error:
            self.refusal = NotApplied(f"its transaction could not begin: {error}", passing=True)
            raise PersistenceError(self.refusal.reason) from error
        if found is None:
            self._refuse_without_lease()
        self._id = found

    def _begun(self) -> AnyTurnConnection:
        if self._connection is None:
            raise EntityQError(
                "the turn has no transaction",
                advice="Declare the message transactional=True, or begin one with self.context.transaction().",
            )
        return self._connection

    # ----- commit

    async def _hold(self, connection: AnyTurnConnection) -> None:
        """Raises EntityQError where the handler has not left the transaction as it should, psycopg.Error."""
        wrong = WRONG.get(TransactionStatus(connection.pgconn.transaction_status))
        if wrong is not None:
            raise wrong.error()
        tenure, fence = self._tenure, self._transactions.fence
        if not self._transactions.held(tenure):
            self._refuse_without_lease()
        await fence.end_handler(connection)
        try:
            found = await fence.hold(connection, tenure.shard_id, tenure.epoch)
        except Error as error:
            self.refusal = NotApplied(f"its shard could not be held: {error}", passing=True)
            raise
        if found is None:
            self._refuse_without_lease()
        if found != self._id:
            raise ENDED.error()

    async def _committed(self, connection: AnyTurnConnection, commit: Commit, applied: Applied) -> Committed:
        try:
            await connection.commit()
        except Error as error:
            if connection.pgconn.transaction_status not in _UNDER_WAY:
                raise
            self.abandon()
            return await self._fate(commit, applied, error)
        self._open = False
        return applied

    async def _fate(self, commit: Commit, applied: Applied, error: Error) -> Committed:
        """The connection ended at the commit: what became of it is read. Raises LeaseLost, psycopg.Error."""
        asked = {
            "transaction": self._id,
            "reply": commit.encoded_reply,
            "request_id": commit.request.request_id,
        }
        deadline = self._loop.time() + FATE_DEADLINE
        while True:
            ((status, answered),) = await self._transactions.execute(READ_FATE, asked)
            if answered:
                return applied
            if status != "in progress" or self._loop.time() > deadline:
                reason = " ".join(str(error).split())
                return NotApplied(f"its connection ended at the commit ({status}): {reason}", passing=True)
            await asyncio.sleep(FATE_PAUSE)

    def _refuse_without_lease(self) -> NoReturn:
        self.refusal = NotApplied(GONE)
        raise EntityQError(GONE)


# Nobody knows yet what the server makes of it, or ever will over this connection.
_UNDER_WAY = (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN)
