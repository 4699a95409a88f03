"""The current turn, as the code that runs in it sees it."""

from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar, overload

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from entityq.errors import EntityQError
from entityq.ports import Home, OwnSignals, OwnTransaction, Sender
from entityq.transaction import TransactionBlock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TurnContext:
    """`self.context` of a handler. `attempt` counts from 1; `deadline` is when nobody waits any more (UTC).

    `fencing_token` is (epoch of the lease, version of the state): it only grows for an entity, so an outside
    system that remembers the greatest one can refuse a call that comes late.
    `last_chunk`: of a handler that streams and runs again, the last value that is stored, after which it goes on.
    """

    request_id: int
    attempt: int = 1
    primary_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    deadline: datetime | None = None
    fencing_token: tuple[int, int] = (0, 0)
    last_chunk: Any = None
    own_transaction: OwnTransaction | None = field(default=None, repr=False, compare=False)
    own_signals: OwnSignals | None = field(default=None, repr=False, compare=False)

    @property
    def connection(self) -> AsyncConnection[TupleRow]:
        """A psycopg connection: what is executed on it commits with the turn, or never.

        For handlers that are an `async def`. Raises EntityQError where no transaction has begun: see `transaction`.
        """
        return self._own().connection

    @property
    def blocking_connection(self) -> Connection[TupleRow]:
        """The same for handlers that are plain functions."""
        return self._own().blocking_connection

    def transaction(self) -> TransactionBlock:
        """Begins the turn's transaction, at its first use; a message that is `transactional` has begun it already.

        It is raised in the block: EntityQError in a turn that is volatile or concurrent, PersistenceError where there
        is no connection to be had.
        """
        return TransactionBlock(self._own())

    def signal_token(self, name: str) -> str:
        """What `app.signal` needs to end this request's wait for the signal of this name: the same at every attempt,
        and good from now on until the request is answered. Who has it can signal, and nobody else.

        Raises EntityQError in a turn that is volatile or concurrent, MalformedMessage for a name that is none.
        """
        return self._signals().token(name)

    @overload
    def wait_for(self, name: str, *, timeout: float | None = None) -> Coroutine[Any, Any, Any]: ...

    @overload
    def wait_for(
        self, name: str, type: type[T], *, timeout: float | None = None
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def wait_for(self, name: str, type: Any, *, timeout: float | None = None) -> Coroutine[Any, Any, Any]: ...

    def wait_for(
        self, name: str, type: Any = Any, *, timeout: float | None = None
    ) -> Coroutine[Any, Any, Any]:
        """The value of the signal, checked and converted as `type`. For handlers that are an `async def`.

        Where it has not come yet, the attempt ends here, and when it comes the handler runs again from its start:
        with the fields as before the turn, asks before the wait joined, and sends before it not sent. What is raised
        to end it is no Exception, and a handler must let it through. `timeout` (seconds) counts from there, by the
        database's clock; then the wait raises SignalTimeout, which is a TimeoutError, in every later attempt too.

        Raises MalformedMessage for a value that does not fit `type`; EntityQError in a turn that is volatile or
        concurrent.
        """
        return self._signals().wait(name, type, timeout)

    @overload
    def wait_for_blocking(self, name: str, *, timeout: float | None = None) -> Any: ...

    @overload
    def wait_for_blocking(self, name: str, type: type[T], *, timeout: float | None = None) -> T: ...

    @overload
    def wait_for_blocking(self, name: str, type: Any, *, timeout: float | None = None) -> Any: ...

    def wait_for_blocking(self, name: str, type: Any = Any, *, timeout: float | None = None) -> Any:
        """The same for handlers that are plain functions."""
        return self._signals().wait_blocking(name, type, timeout)

    def _signals(self) -> OwnSignals:
        if self.own_signals is None:
            raise EntityQError(
                f"the turn of request {self.request_id} cannot wait for signals: its message is volatile or concurrent",
                advice="Use a persisted message that is not concurrent.",
            )
        return self.own_signals

    def _own(self) -> OwnTransaction:
        if self.own_transaction is None:
            raise EntityQError(
                f"the turn of request {self.request_id} has no transaction: its message is volatile or concurrent",
                advice="Use a connection of your own, or a persisted message that is not concurrent.",
            )
        return self.own_transaction


@dataclass(frozen=True, slots=True)
class Turn:
    """`sender` makes what is sent part of the turn."""

    context: TurnContext
    sender: Sender


current_turn: ContextVar[Turn | None] = ContextVar("entityq_current_turn", default=None)

# Set where entityq.testing runs entities: what they send outside of a turn, as in on_activate, stays there.
test_home: ContextVar[Home | None] = ContextVar("entityq_test_home", default=None)


def sender_for(home: Home) -> Sender:
    turn = current_turn.get()
    return (test_home.get() or home).sender() if turn is None else turn.sender
