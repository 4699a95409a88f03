"""The client: sends calls and waits for their replies, on one event loop."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any, Self

from psycopg import Error

from entityq.address import Address
from entityq.broadcast import Broadcast
from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.client.blocking import BlockingClient, HomeLoop, Work
from entityq.client.canceller import Canceller, refuse_volatile
from entityq.client.machinery import Machinery
from entityq.client.many import Many, refuse_too_many
from entityq.client.replying import Replying
from entityq.client.send import Acceptance, Send
from entityq.client.settlement import group_closed, unknown_type
from entityq.client.signaller import Signaller
from entityq.client.waiter import Waiting
from entityq.config import Servers, Settings
from entityq.definition import EntityDefinition
from entityq.errors import (
    Accepted,
    EntityQError,
    PersistenceError,
    RunnerNotRegistered,
    RunnerUnavailable,
    SendTimeout,
)
from entityq.ports import BatchOutcome
from entityq.postgres.facts import Facts
from entityq.postgres.outbox import NewRequest, read_status
from entityq.postgres.session import ConnectionLost
from entityq.receipt import Receipt
from entityq.reply import Outcome
from entityq.retry import TRANSIENT
from entityq.signal_outcome import SignalOutcome
from entityq.signal_token import SignalPlace, read_signal_token, signal_token
from entityq.snowflake import Snowflakes, client_machine
from entityq.status import EntityStatus, PendingSignal

RETRY = TRANSIENT


class Client:
    """A Sender. Made by `open` on the event loop that it is used on; ended by `close`."""

    def __init__(self, settings: Settings, machinery: Machinery) -> None:
        self._settings = settings
        self._machinery = machinery
        self._home = HomeLoop()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls,
        settings: Settings,
        servers: Servers,
        definitions: Mapping[str, EntityDefinition],
        *,
        ids: Snowflakes | None = None,
    ) -> Self:
        """Registers the entity types that the cluster does not have yet.

        Raises UnsafeConfiguration, and PersistenceError when Postgres cannot be reached. Redis may be down.
        """
        ids = ids or Snowflakes(client_machine())
        return cls(settings, await Machinery.open(settings, servers, definitions, ids, RETRY))

    async def close(self) -> None:
        """Ends everything; what is being sent fails, and says whether it is accepted."""
        await self._machinery.close()

    @property
    def facts(self) -> Facts:
        return self._machinery.facts.now

    def new_request(self, call: Call) -> NewRequest:
        """A call as a row of the outbox, for a transaction that is not the client's.

        Raises PersistenceError for an entity type that the cluster does not have.
        """
        if call.address.type not in self.facts.types:
            raise unknown_type(call.address.type, self.facts.namespace)
        return self._machinery.encoder.request(call)

    # ----- Sender

    async def send(self, call: Call, *, began: float | None = None) -> Receipt[Any]:
        """`began`: the time of the loop from which its timeouts count, by default now.

        Raises PrimaryKeyConflict, PersistenceError, MailboxFull, MalformedMessage, SendTimeout.
        """
        began = self._loop.time() if began is None else began
        if not call.message.persisted:
            return await self._send_volatile(call, began)
        request = self._machinery.encoder.request(call)
        acceptance = await self._machinery.acceptor.accept(Send(call, request, self._accept_by(call, began)))
        return self._receipt(call, acceptance)

    async def send_many(self, calls: Sequence[Call], *, began: float | None = None) -> list[BatchOutcome]:
        """`began` as for `send`.

        Raises PersistenceError, MailboxFull, MalformedMessage, PayloadTooLarge, SendTimeout.
        """
        if not calls:
            return []
        # The caller waits for all: what a single call says about its reply does not count here.
        deadline = (self._loop.time() if began is None else began) + self._settings.send_timeout
        many = Many([Send(call, self._machinery.encoder.request(call), deadline) for call in calls], deadline)
        refuse_too_many(many)
        settled = await self._machinery.acceptor.accept_many(many)
        return [
            outcome if isinstance(outcome, EntityQError) else self._receipt(call, outcome)
            for call, outcome in zip(calls, settled, strict=True)
        ]

    async def ask(self, call: Call, *, began: float | None = None) -> Any:
        """`began` as for `send`. Raises what `send` does, the entity's Failure, and other EntityQErrors."""
        began = self._loop.time() if began is None else began
        timeout = self._patience(call)
        deadline = began + timeout
        if not call.message.persisted:
            return await self._ask_volatile(call, timeout, deadline)
        machinery = self._machinery
        # Nothing is awaited before the acceptor has it: what the caller sends next must not overtake it.
        machinery.subscribe()
        request = machinery.encoder.request(call, timeout)
        waiting = machinery.waiter.expect(request.request_id)
        try:
            send = Send(call, request, self._accept_by(call, began), timeout)
            acceptance = await machinery.acceptor.accept(send)
            if acceptance.request_id == waiting.request_id:
                return await machinery.reader.read(call, waiting, timeout, deadline)
        finally:
            machinery.waiter.forget(waiting)
        # It joins the first request with its key, or its id was taken by somebody else's request.
        return await machinery.reader.wait(call, acceptance, deadline - self._loop.time())

    async def broadcast(self, call: Call, *, began: float | None = None) -> Broadcast:
        """`began` as for `send`.

        Raises PersistenceError when the live runners cannot be read, SendTimeout when Redis does not take it.
        """
        timeout = self._settings.send_timeout if call.timeout is None else call.timeout
        deadline = (self._loop.time() if began is None else began) + timeout
        return await self._machinery.broadcaster.broadcast(call, deadline)

    async def cancel(self, request_id: int) -> CancelOutcome:
        """Raises PersistenceError when Postgres does not answer, EntityQError for an unknown request."""
        machinery = self._machinery
        outcome = await Canceller(machinery.reads, self._settings.namespace, RETRY).cancel(request_id)
        if outcome is CancelOutcome.CANCELLED:
            # Nobody tells of a reply that no runner has stored: who waits here reads it.
            machinery.waiter.received([(request_id, None)])
        return outcome

    async def signal(self, token: str, value: bytes) -> SignalOutcome:
        """Raises MalformedMessage for a forged token, PersistenceError when Postgres does not answer."""
        place = read_signal_token(self.facts.signal_key, token)
        return await Signaller(self._machinery.reads, self._settings.namespace, RETRY).signal(place, value)

    def stream(self, call: Call, request_id: int, after: int) -> AsyncGenerator[Any, None]:
        """Raises PersistenceError, SendTimeout, ReplyExpired, and what the reply is where it is no success."""
        self._machinery.subscribe()
        return self._machinery.streams.values(call, request_id, after, self._patience(call))

    async def status(self, address: Address) -> EntityStatus:
        """Raises PersistenceError when Postgres does not answer."""
        namespace = self._settings.namespace
        try:
            stored = await self._machinery.reads.run(
                lambda connection: read_status(connection, namespace, address)
            )
        except (ConnectionLost, Error) as error:
            raise PersistenceError(f"The status of {address} cannot be read: {error}") from error
        if stored.closed is not None:
            raise group_closed(stored.closed)
        if stored.waiting is not None and stored.signal is not None:
            token = signal_token(self.facts.signal_key, SignalPlace(stored.waiting, stored.signal))
            return EntityStatus("suspended", stored.updated_at, PendingSignal(stored.signal, token))
        if stored.processing:
            return EntityStatus("processing", stored.updated_at)
        if stored.outcome is None:
            return EntityStatus("idle", stored.updated_at)
        return EntityStatus("complete" if stored.outcome == Outcome.SUCCESS else "failed", stored.updated_at)

    def blocking(self) -> BlockingClient:
        """For other threads: this client's loop does the work."""
        settings = self._settings
        return BlockingClient(
            self._run_blocking, send_timeout=settings.send_timeout, ask_timeout=settings.ask_timeout
        )

    async def reply(self, call: Call, request_id: int, seconds: float | None) -> Any:
        """The result of a request that somebody else's transaction stores. Raises what `ask` does."""
        patience = self._patience(call) if seconds is None else seconds
        waiting = self._machinery.waiter.expect(request_id)
        try:
            return await self._machinery.reader.read(call, waiting, patience, self._loop.time() + patience)
        except (SendTimeout, RunnerUnavailable, RunnerNotRegistered) as silence:
            if await self._is_stored(request_id):
                raise
            raise SendTimeout(
                f"{call.message.name} to {call.address} is not in the outbox after {patience:g} s: its transaction "
                "has not committed, was rolled back, or the reply is no longer kept",
                accepted=Accepted.UNKNOWN,
                request_id=request_id,
                advice="Wait for the reply after the commit.",
            ) from silence
        finally:
            self._machinery.waiter.forget(waiting)

    async def _is_stored(self, request_id: int) -> bool:
        """True also where it cannot be found out."""
        try:
            return request_id in await self._machinery.read_replies([request_id])
        except (ConnectionLost, PersistenceError, Error):
            return True

    # ----- persisted

    def _accept_by(self, call: Call, began: float) -> float:
        limit = self._settings.send_timeout
        return began + (limit if call.timeout is None else min(limit, call.timeout))

    def _patience(self, call: Call) -> float:
        return self._settings.ask_timeout if call.timeout is None else call.timeout

    def _receipt(self, call: Call, acceptance: Acceptance) -> Receipt[Any]:
        cancel = partial(self.cancel, acceptance.request_id)
        replying = Replying(self._home, partial(self._wait, call, acceptance), cancel, self._patience(call))
        return replying.receipt(call, acceptance.request_id, duplicate=acceptance.duplicate)

    async def _wait(self, call: Call, acceptance: Acceptance, patience: float) -> Any:
        if acceptance.reply is None:
            self._machinery.subscribe()
        return await self._machinery.reader.wait(call, acceptance, patience)

    def _run_blocking(self, work: Work[Any], seconds: float) -> Any:
        return self._home.run_blocking(lambda: work(self), seconds)

    # ----- volatile

    async def _ask_volatile(self, call: Call, patience: float, deadline: float) -> Any:
        # Its reply is told once, on the channel.
        await self._machinery.listen(deadline - self._loop.time())
        return await self._machinery.volatile.ask(call, patience, deadline)

    async def _send_volatile(self, call: Call, began: float) -> Receipt[Any]:
        machinery, timeout = self._machinery, self._patience(call)
        deadline = began + timeout
        await machinery.listen(deadline - self._loop.time())
        waiting = await machinery.volatile.send(call, timeout, deadline)
        self._loop.call_at(deadline, machinery.waiter.forget, waiting)

        async def read(seconds: float) -> Any:
            by = min(deadline, self._loop.time() + seconds)
            # Who gives up leaves the reply to others who wait for the same receipt.
            own = Waiting(waiting.request_id, asyncio.shield(waiting.reply), persisted=False)
            return await machinery.reader.read(call, own, seconds, by)

        cancel = partial(refuse_volatile, call)
        return Replying(self._home, read, cancel, timeout).receipt(call, waiting.request_id, duplicate=False)
