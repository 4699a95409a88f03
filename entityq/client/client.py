"""The client: sends calls and waits for their replies, on one event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Self

from psycopg import Error

from entityq.address import Address
from entityq.call import Call
from entityq.client.blocking import GRACE, BlockingClient, HomeLoop, Work
from entityq.client.machinery import Machinery
from entityq.client.send import Acceptance, Send
from entityq.config import Servers, Settings
from entityq.definition import EntityDefinition
from entityq.errors import PersistenceError
from entityq.postgres.facts import Facts
from entityq.postgres.outbox import NewRequest, read_status
from entityq.postgres.session import ConnectionLost
from entityq.receipt import Receipt
from entityq.reply import Outcome
from entityq.retry import RetryPolicy
from entityq.snowflake import Snowflakes, client_machine
from entityq.status import EntityStatus

RETRY = RetryPolicy()


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
        return self._machinery.facts

    def new_request(self, call: Call) -> NewRequest:
        """A call as a row of the outbox, for a transaction that is not the client's."""
        return self._machinery.encoder.request(call)

    # ----- Sender

    async def send(self, call: Call) -> Receipt[Any]:
        """Raises PrimaryKeyConflict, PersistenceError, MailboxFull, MalformedMessage, SendTimeout."""
        if not call.message.persisted:
            return await self._send_volatile(call)
        request = self._machinery.encoder.request(call)
        acceptance = await self._machinery.acceptor.accept(Send(call, request, self._accept_by(call)))
        return self._receipt(call, acceptance)

    async def ask(self, call: Call) -> Any:
        """Raises what `send` does, the entity's Failure, and other EntityQErrors."""
        timeout = self._reply_timeout(call, None)
        if not call.message.persisted:
            return await self._ask_volatile(call, timeout)
        machinery, deadline = self._machinery, self._loop.time() + timeout
        await machinery.listen()
        request = machinery.encoder.request(call, timeout)
        waiting = machinery.waiter.expect(request.request_id)
        try:
            send = Send(call, request, self._accept_by(call), timeout)
            acceptance = await machinery.acceptor.accept(send)
            if acceptance.request_id == waiting.request_id:
                return await machinery.reader.read(call, waiting, timeout, deadline)
        finally:
            machinery.waiter.forget(waiting)
        # It joins the first request with its key, or its id was taken by somebody else's request.
        return await machinery.reader.wait(call, acceptance, deadline - self._loop.time())

    async def status(self, address: Address) -> EntityStatus:
        """Raises PersistenceError when Postgres does not answer."""
        namespace = self._machinery.facts.namespace
        try:
            stored = await self._machinery.reads.run(
                lambda connection: read_status(connection, namespace, address)
            )
        except (ConnectionLost, Error) as error:
            raise PersistenceError(f"The status of {address} cannot be read: {error}") from error
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

    # ----- persisted

    def _accept_by(self, call: Call) -> float:
        limit = self._settings.send_timeout
        return self._loop.time() + (limit if call.timeout is None else min(limit, call.timeout))

    def _reply_timeout(self, call: Call, timeout: float | None) -> float:
        if timeout is not None:
            return timeout
        return self._settings.ask_timeout if call.timeout is None else call.timeout

    def _receipt(self, call: Call, acceptance: Acceptance) -> Receipt[Any]:
        async def wait(patience: float | None) -> Any:
            if acceptance.reply is None:
                await self._machinery.listen()
            limit = self._reply_timeout(call, patience)
            return await self._machinery.reader.wait(call, acceptance, limit)

        return self._new_receipt(call, acceptance.request_id, wait, duplicate=acceptance.duplicate)

    def _new_receipt(
        self,
        call: Call,
        request_id: int,
        wait: Callable[[float | None], Coroutine[Any, Any, Any]],
        *,
        duplicate: bool,
    ) -> Receipt[Any]:
        """`wait` runs on this client's loop, wherever the receipt is waited for."""

        async def wait_anywhere(patience: float | None) -> Any:
            return await self._home.run(partial(wait, patience))

        def block(patience: float | None) -> Any:
            limit = self._reply_timeout(call, patience) + GRACE
            return self._home.run_blocking(partial(wait, patience), limit)

        return Receipt(request_id, call.address, duplicate=duplicate, wait=wait_anywhere, block=block)

    def _run_blocking(self, work: Work[Any], seconds: float) -> Any:
        return self._home.run_blocking(lambda: work(self), seconds)

    # ----- volatile

    async def _ask_volatile(self, call: Call, patience: float) -> Any:
        await self._machinery.listen()
        return await self._machinery.volatile.ask(call, patience)

    async def _send_volatile(self, call: Call) -> Receipt[Any]:
        machinery, timeout = self._machinery, self._reply_timeout(call, None)
        deadline = self._loop.time() + timeout
        await machinery.listen()
        waiting = await machinery.volatile.send(call, timeout, deadline)
        # The reply comes once, whether somebody waits for it by then or not.
        self._loop.call_at(deadline, machinery.waiter.forget, waiting)

        async def wait(patience: float | None) -> Any:
            limit = self._reply_timeout(call, patience)
            by = min(deadline, self._loop.time() + limit)
            return await machinery.reader.read(call, waiting, limit, by)

        return self._new_receipt(call, waiting.request_id, wait, duplicate=False)
