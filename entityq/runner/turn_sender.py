"""The Sender of the code that runs in a turn: what it sends is part of the turn."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

from entityq.address import Address
from entityq.broadcast import Broadcast
from entityq.call import Call, task_address
from entityq.cancel_outcome import CancelOutcome
from entityq.context import TurnContext
from entityq.errors import Accepted, EntityQError, PayloadTooLarge, PrimaryKeyConflict, SendTimeout
from entityq.ports import BatchOutcome, Sender
from entityq.postgres.outbox import NewRequest
from entityq.receipt import Receipt
from entityq.runner.request import Request
from entityq.signal_outcome import SignalOutcome
from entityq.status import EntityStatus

# The addresses that wait for this turn, oldest first, as "type/id" texts separated by a newline (which no
# entity id can hold).
CHAIN_HEADER = "entityq-chain"
DEFAULT_ASK_TIMEOUT = 30.0
# Of one turn: a statement that takes longer than the lease time would cost the runner all its leases.
MAX_SENDS = 5_000
MAX_SENT_BYTES = 4 * 1024 * 1024


class TurnClient(Sender, Protocol):
    """The runner's own client."""

    def new_request(self, call: Call) -> NewRequest:
        """The call as a row of the outbox. Raises EntityQError for an entity type that nobody has registered."""
        ...


class TurnSender:
    """Sends are collected and commit with the turn; asks are committed at once, by the runner's client.

    Args:
        client: the runner's own client.
        waiting: entered while the turn waits for a reply: it then holds no place that others may need.
    """

    def __init__(
        self, request: Request, client: TurnClient, waiting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.sent: list[NewRequest] = []
        self._by_key: dict[bytes, NewRequest] = {}
        self._bytes = 0
        self._request = request
        self._client = client
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._asks = 0
        self._ask_until: float | None = None
        self._ended = False

    def context(self, epoch: int, version: int) -> TurnContext:
        envelope = self._request.envelope
        deadline = envelope.deadline_ms
        return TurnContext(
            request_id=envelope.request_id,
            attempt=self._request.attempt,
            primary_key=envelope.primary_key,
            headers=envelope.headers,
            deadline=None if deadline is None else datetime.fromtimestamp(deadline / 1000, UTC),
            fencing_token=(epoch, version),
        )

    def begin(self, time_limit: float | None) -> None:
        """The handler is to start. What it asks has no more time than it has itself: until nobody waits for its
        reply, and within its time limit (seconds). Where nobody waits already, it has all the time."""
        deadline = self._request.envelope.deadline_ms
        waits = None if deadline is None else deadline / 1000 - time.time()
        left = [seconds for seconds in (time_limit, waits) if seconds is not None and seconds > 0]
        self._ask_until = self._loop.time() + min(left) if left else None

    def end(self) -> None:
        """The handler has returned: nothing can be added to the turn any more."""
        self._ended = True

    # ----- Sender

    async def send(self, call: Call) -> Receipt[Any]:
        """Part of the turn's transaction; a volatile message leaves at once."""
        self._require_running()
        if not call.message.persisted:
            return await self._client.send(call)
        request = self._client.new_request(call)
        known = None if request.key_digest is None else self._by_key.get(request.key_digest)
        if known is None:
            self._add(request)
        elif known.payload_hash != request.payload_hash:
            raise PrimaryKeyConflict(
                f"{call.address} was sent {call.message.name} with primary key {call.primary_key!r} and "
                "another payload earlier in this turn",
                request_id=known.request_id,
            )
        return self._receipt(known or request, duplicate=known is not None)

    async def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        """Part of the turn's transaction; a conflict with a request from outside of the turn is the turn's defect."""
        outcomes: list[BatchOutcome] = []
        for call in calls:
            try:
                outcomes.append(await self.send(call))
            except PrimaryKeyConflict as conflict:
                outcomes.append(conflict)
        return outcomes

    async def ask(self, call: Call) -> Any:
        """Committed at once. A repeat of the turn joins the same ask, whatever its payload."""
        self._require_running()
        timeout = self._ask_timeout(call)
        chain = self._chain()
        if str(call.address) in chain:
            raise EntityQError(
                f"asking {call.address} would never end: it waits for this turn ({' -> '.join(chain)})",
                advice="Use send, or call a plain method.",
            )
        self._asks += 1
        headers = {**call.headers, CHAIN_HEADER: "\n".join(chain)}
        asked = replace(call, headers=headers, timeout=timeout)
        if call.message.persisted and self._request.envelope.persisted and call.primary_key is None:
            key = f"$turn:{self._request.request_id}:{self._asks}"
            # The same hash whatever the payload: a handler may compute something else when it runs again.
            asked = replace(asked, primary_key=key, payload_hash=bytes(32))
            if call.entity.stateless:
                # A task's address is a new id at each call; the repeat must meet the first at one address.
                asked = replace(asked, address=task_address(call.address.type, key, lambda: 0))
        with self._waiting():
            return await self._client.ask(asked)

    async def broadcast(self, call: Call) -> Broadcast:
        """Leaves at once: nothing of it is part of the turn."""
        self._require_running()
        with self._waiting():
            return await self._client.broadcast(call)

    async def cancel(self, request_id: int) -> CancelOutcome:
        """At once: it is not undone when the turn is not applied."""
        self._require_running()
        return await self._client.cancel(request_id)

    async def signal(self, token: str, value: bytes) -> SignalOutcome:
        """At once: it is not undone when the turn is not applied."""
        self._require_running()
        return await self._client.signal(token, value)

    def stream(self, call: Call, request_id: int, after: int) -> AsyncGenerator[Any, None]:
        """Raises EntityQError: what is sent in a turn runs after it."""
        del after
        raise EntityQError(
            f"{call.address} cannot be asked to stream {call.message.name} inside of a turn",
            request_id=request_id,
            advice="Let it send its values, or ask for a list.",
        )

    async def status(self, address: Address) -> EntityStatus:
        return await self._client.status(address)

    def blocking(self) -> "BlockingTurnSender":
        return BlockingTurnSender(self, self._loop)

    # ----- helpers

    def _require_running(self) -> None:
        if self._ended:
            raise EntityQError(
                f"the turn of request {self._request.request_id} is over: nothing can be added to it",
                advice="Await everything that a handler starts before it returns.",
            )

    def _add(self, request: NewRequest) -> None:
        self._bytes += len(request.envelope)
        if len(self.sent) >= MAX_SENDS or self._bytes > MAX_SENT_BYTES:
            raise PayloadTooLarge(
                f"the turn of request {self._request.request_id} sends more than {MAX_SENDS:,} requests or "
                f"{MAX_SENT_BYTES // 1024**2} MiB: they commit in one statement",
                advice="Let a message send a part, and itself the message for the next part.",
            )
        self.sent.append(request)
        if request.key_digest is not None:
            self._by_key[request.key_digest] = request

    def _ask_timeout(self, call: Call) -> float:
        """In seconds. Raises SendTimeout when the turn's own time is over."""
        timeout = DEFAULT_ASK_TIMEOUT if call.timeout is None else call.timeout
        if self._ask_until is None:
            return timeout
        left = self._ask_until - self._loop.time()
        if left <= 0:
            raise SendTimeout(
                f"{call.address} was not asked {call.message.name}: the time of the turn of request "
                f"{self._request.request_id} is over",
                accepted=Accepted.NO,
            )
        return min(timeout, left)

    def _chain(self) -> list[str]:
        envelope = self._request.envelope
        inherited = envelope.headers.get(CHAIN_HEADER, "")
        return [*(inherited.split("\n") if inherited else []), str(envelope.address)]

    def _receipt(self, request: NewRequest, *, duplicate: bool) -> Receipt[Any]:
        async def wait(_: float | None) -> NoReturn:
            self._refuse_to_wait(request)

        def block(_: float | None) -> NoReturn:
            self._refuse_to_wait(request)

        async def cancel() -> NoReturn:
            self._refuse_to_cancel(request)

        def cancel_blocking() -> NoReturn:
            self._refuse_to_cancel(request)

        return Receipt(
            request.request_id,
            request.address,
            duplicate=duplicate,
            wait=wait,
            block=block,
            cancel=cancel,
            cancel_blocking=cancel_blocking,
        )

    def _refuse_to_cancel(self, request: NewRequest) -> NoReturn:
        raise EntityQError(
            f"{request.address} gets this request when the turn commits: there is nothing to cancel before",
            request_id=request.request_id,
            advice="Raise in the handler, or cancel it by its id from another turn.",
        )

    def _refuse_to_wait(self, request: NewRequest) -> NoReturn:
        raise EntityQError(
            f"{request.address} gets this request when the turn commits: waiting for its reply in the same "
            "turn would never end",
            request_id=request.request_id,
            advice="Ask (call the message) instead of sending it.",
        )


class BlockingTurnSender:
    """The same for handlers that are plain functions: they run in a thread, the turn's loop does the work."""

    def __init__(self, sender: TurnSender, loop: asyncio.AbstractEventLoop) -> None:
        self._sender = sender
        self._loop = loop

    def send(self, call: Call) -> Receipt[Any]:
        receipt: Receipt[Any] = self._run(lambda: self._sender.send(call))
        return receipt

    def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        outcomes: list[BatchOutcome] = self._run(lambda: self._sender.send_many(calls))
        return outcomes

    def ask(self, call: Call) -> Any:
        return self._run(lambda: self._sender.ask(call))

    def broadcast(self, call: Call) -> Broadcast:
        reached: Broadcast = self._run(lambda: self._sender.broadcast(call))
        return reached

    def cancel(self, request_id: int) -> CancelOutcome:
        outcome: CancelOutcome = self._run(lambda: self._sender.cancel(request_id))
        return outcome

    def signal(self, token: str, value: bytes) -> SignalOutcome:
        outcome: SignalOutcome = self._run(lambda: self._sender.signal(token, value))
        return outcome

    def _run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(_coroutine(work), self._loop).result()
        raise EntityQError("this would block the event loop", advice="Use await, without .call or .delay.")


async def _coroutine(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()
