"""The clients of one app: one for each event loop that sends, and one, with a thread, for sync code."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from entityq.address import Address
from entityq.broadcast import Broadcast
from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.client.blocking import GRACE, BlockingClient
from entityq.client.client import Client
from entityq.client.client_thread import ClientThread
from entityq.client.opening import POLICY, Opening
from entityq.client.replying import CANCEL_TIME
from entityq.config import Settings
from entityq.errors import Accepted, PersistenceError, SendTimeout
from entityq.ports import BatchOutcome, Sender
from entityq.receipt import Receipt
from entityq.signal_outcome import SignalOutcome
from entityq.status import EntityStatus


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Of one loop."""

    opening: Opening
    client: asyncio.Task[Client]

    @property
    def usable(self) -> bool:
        """Whether there is a client, or may still be."""
        task = self.client
        return not task.done() or not (task.cancelled() or task.exception())


class Clients:
    """A Sender for every loop and thread: each client is opened at its first use."""

    def __init__(
        self, open_client: Callable[[], Awaitable[Client]], settings: Callable[[], Settings]
    ) -> None:
        self._open = open_client
        self._settings = settings
        self._thread = ClientThread(self._open_for_thread)
        self._by_loop = WeakKeyDictionary[asyncio.AbstractEventLoop, _Place]()

    async def send(self, call: Call) -> Receipt[Any]:
        began = asyncio.get_running_loop().time()
        client = await self._current(began, call)
        return await client.send(call, began=began)

    async def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        if not calls:
            return []
        began = asyncio.get_running_loop().time()
        client = await self._current(began, calls[0])
        return await client.send_many(calls, began=began)

    async def ask(self, call: Call) -> Any:
        began = asyncio.get_running_loop().time()
        client = await self._current(began, call)
        return await client.ask(call, began=began)

    async def broadcast(self, call: Call) -> Broadcast:
        began = asyncio.get_running_loop().time()
        client = await self._current(began, call)
        return await client.broadcast(call, began=began)

    async def cancel(self, request_id: int) -> CancelOutcome:
        return await (await self._current(asyncio.get_running_loop().time())).cancel(request_id)

    async def signal(self, token: str, value: bytes) -> SignalOutcome:
        return await (await self._current(asyncio.get_running_loop().time())).signal(token, value)

    async def stream(self, call: Call, request_id: int, after: int) -> AsyncGenerator[Any, None]:
        client = await self._current(asyncio.get_running_loop().time(), call)
        async with aclosing(client.stream(call, request_id, after)) as values:
            async for value in values:
                yield value

    async def status(self, address: Address) -> EntityStatus:
        return await (await self._current(asyncio.get_running_loop().time())).status(address)

    def receipt(self, call: Call, request_id: int, *, duplicate: bool) -> Receipt[Any]:
        """Of a request in somebody else's transaction: whoever waits for the reply does so with a client of his own
        loop, from the commit on."""

        async def wait(seconds: float | None) -> Any:
            client = await self._current(asyncio.get_running_loop().time())
            return await client.reply(call, request_id, seconds)

        async def wait_in_thread(sender: Sender, seconds: float | None) -> Any:
            client = cast("Client", sender)  # what _open_for_thread returned
            return await client.reply(call, request_id, seconds)

        def block(seconds: float | None) -> Any:
            limit = seconds or call.timeout or self._settings().ask_timeout
            return self._thread.run(lambda sender: wait_in_thread(sender, seconds), limit + GRACE)

        return Receipt(
            request_id,
            call.address,
            duplicate=duplicate,
            wait=wait,
            block=block,
            cancel=lambda: self.cancel(request_id),
            cancel_blocking=lambda: self._thread.run(
                lambda sender: sender.cancel(request_id), CANCEL_TIME + GRACE
            ),
        )

    def blocking(self) -> BlockingClient:
        settings = self._settings()
        return BlockingClient(
            self._thread.run, send_timeout=settings.send_timeout, ask_timeout=settings.ask_timeout
        )

    async def close(self) -> None:
        """The running loop's client; the next use opens another one."""
        place = self._by_loop.pop(asyncio.get_running_loop(), None)
        if place is not None:
            place.opening.give_up()
            await asyncio.wait([place.client])
            if place.usable:
                await place.client.result().close()

    def close_blocking(self) -> None:
        """The one for sync code, with its thread."""
        self._thread.close()

    async def _current(self, began: float, call: Call | None = None) -> Client:
        """For a call that began then. Raises SendTimeout at its deadline; the opening goes on for the others."""
        loop = asyncio.get_running_loop()
        while True:
            place = self._place(loop, began)
            if not place.client.done():
                await asyncio.wait([place.client], timeout=self._left(began, call))
            if call is not None and not place.client.done():
                raise _not_open(call, place.opening)
            try:
                return place.client.result()
            except PersistenceError:
                # Whoever came later than the first has tries left.
                if place.opening.given_up or loop.time() >= began + POLICY.total:
                    raise

    def _left(self, began: float, call: Call | None) -> float | None:
        if call is None:
            return None
        limit = self._settings().send_timeout
        deadline = began + (limit if call.timeout is None else min(limit, call.timeout))
        return max(0.0, deadline - asyncio.get_running_loop().time())

    def _place(self, loop: asyncio.AbstractEventLoop, began: float) -> _Place:
        place = self._by_loop.get(loop)
        if place is None or not place.usable:
            self._drop_closed_loops()
            opening = Opening(self._open, began)
            task = loop.create_task(opening.run(), name="entityq client opening")
            place = self._by_loop[loop] = _Place(opening, task)
        return place

    async def _open_for_thread(self) -> Client:
        return await Opening(self._open, asyncio.get_running_loop().time()).run()

    def _drop_closed_loops(self) -> None:
        # A client knows its loop: without this, neither would ever be collected.
        for loop in [loop for loop in self._by_loop if loop.is_closed()]:
            del self._by_loop[loop]


def _not_open(call: Call, opening: Opening) -> SendTimeout:
    return SendTimeout(
        f"{call.message.name} to {call.address} was not accepted in time: its client is not open yet"
        f"{opening.trouble and ': '}{opening.trouble}",
        accepted=Accepted.NO,
        advice="Send it again, with the same primary key if it has one.",
    )
