"""What handles, messages and turns need of those who carry and keep things."""

from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Protocol

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from entityq.address import Address
from entityq.broadcast import Broadcast
from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.config import Settings
from entityq.errors import EntityQError
from entityq.receipt import Receipt
from entityq.serializer import Serializer
from entityq.signal_outcome import SignalOutcome
from entityq.status import EntityStatus
from entityq.stored_state import StoredState

# Of one request of a batch: the error is that of a known primary key.
BatchOutcome = Receipt[Any] | EntityQError


class BlockingSender(Protocol):
    """For sync code; refuses, with an EntityQError, to block a running event loop."""

    def send(self, call: Call) -> Receipt[Any]: ...

    def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]: ...

    def ask(self, call: Call) -> Any: ...

    def broadcast(self, call: Call) -> Broadcast: ...

    def cancel(self, request_id: int) -> CancelOutcome: ...

    def signal(self, token: str, value: bytes) -> SignalOutcome: ...


class Sender(Protocol):
    """Implemented by the client, by the current turn and by entityq.testing."""

    async def send(self, call: Call) -> Receipt[Any]:
        """Returns when the request is accepted."""
        ...

    async def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        """All of them in one transaction, or none. They are persisted ones."""
        ...

    async def ask(self, call: Call) -> Any:
        """The decoded reply. Raises the entity's Failure, or an EntityQError."""
        ...

    async def broadcast(self, call: Call) -> Broadcast:
        """Of a volatile message; whatever id the call's address has."""
        ...

    async def cancel(self, request_id: int) -> CancelOutcome:
        """Of a persisted request, whoever has sent it."""
        ...

    async def signal(self, token: str, value: bytes) -> SignalOutcome:
        """Of a request that a handler has made the token in; `value` is encoded. Raises MalformedMessage."""
        ...

    def stream(self, call: Call, request_id: int, after: int) -> AsyncGenerator[Any, None]:
        """The values of an accepted request that streams, but for the first `after`, as they come.

        Raises the entity's Failure, or an EntityQError, where its end is one.
        """
        ...

    async def status(self, address: Address) -> EntityStatus: ...

    def blocking(self) -> BlockingSender: ...


class OwnTransaction(Protocol):
    """The transaction of the current turn, as its handler sees it. Implemented by a runner and by entityq.testing.

    All of it raises EntityQError where there is none to be had.
    """

    @property
    def connection(self) -> AsyncConnection[TupleRow]: ...

    @property
    def blocking_connection(self) -> Connection[TupleRow]: ...

    async def begin(self) -> AsyncConnection[TupleRow]:
        """At the first call; later ones give the same connection."""
        ...

    def begin_blocking(self) -> Connection[TupleRow]:
        """The same for handlers that are plain functions, in their thread."""
        ...


class OwnSignals(Protocol):
    """The signals of the current turn's request, as its handler sees them. Implemented by a runner.

    A wait that finds no value ends the attempt, with what is no Exception.
    """

    def token(self, name: str) -> str:
        """Raises MalformedMessage for its name."""
        ...

    def wait(self, name: str, annotation: object, timeout: float | None) -> Coroutine[Any, Any, Any]:
        """The value; `timeout` is in seconds. Raises SignalTimeout, MalformedMessage for a value that does not fit."""
        ...

    def wait_blocking(self, name: str, annotation: object, timeout: float | None) -> Any:
        """The same for handlers that are plain functions, in their thread."""
        ...


class Home(Protocol):
    """Where an entity type or a task belongs: the app, or a test client."""

    @property
    def settings(self) -> Settings: ...

    @property
    def serializer(self) -> Serializer:
        """Of payloads."""
        ...

    def new_id(self) -> int: ...

    def sender(self) -> Sender:
        """Used outside of turns."""
        ...

    def receipt(self, call: Call, request_id: int, *, duplicate: bool) -> Receipt[Any]:
        """Of a request that the caller's own transaction stores. Raises EntityQError in a test client."""
        ...


class States(Protocol):
    """The committed states of entities: in Postgres, and in entityq.testing in memory."""

    async def load(self, shard_id: int, address: Address) -> StoredState: ...
