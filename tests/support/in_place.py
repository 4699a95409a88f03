"""An app whose sender runs handlers in place: everything is encoded and decoded as between processes."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from entityq import (
    EntityDefect,
    EntityQ,
    EntityStatus,
    Failure,
    MalformedMessage,
    Receipt,
    SignalOutcome,
    TurnContext,
)
from entityq.address import Address
from entityq.broadcast import Broadcast
from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.codec import Limits
from entityq.context import Turn, current_turn
from entityq.ports import BatchOutcome, Sender
from entityq.replies import defect_reply, failure_reply, result_of, success_reply
from entityq.reply import Reply, decode_reply

LIMITS = Limits()


class InPlace:
    """A Sender and a BlockingSender. `calls` has every call that was made, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.states: dict[Address, bytes] = {}
        self.context = TurnContext(request_id=1)

    async def ask(self, call: Call) -> Any:
        self.calls.append(call)
        return await self._answer(call)

    async def send(self, call: Call) -> Receipt[Any]:
        self.calls.append(call)
        return self._receipt(call)

    async def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        return [await self.send(call) for call in calls]

    async def broadcast(self, call: Call) -> Broadcast:
        self.calls.append(call)
        return Broadcast(runners=1, activations=len(self.states), refused=0, unanswered=0)

    async def cancel(self, request_id: int) -> CancelOutcome:
        del request_id
        return CancelOutcome.ANSWERED

    async def signal(self, token: str, value: bytes) -> SignalOutcome:
        del token, value
        return SignalOutcome.UNKNOWN

    def stream(self, call: Call, request_id: int, after: int) -> AsyncGenerator[Any, None]:
        raise NotImplementedError

    async def status(self, address: Address) -> EntityStatus:
        return EntityStatus("idle" if address in self.states else "complete")

    def blocking(self) -> "BlockingInPlace":
        return BlockingInPlace(self)

    def _receipt(self, call: Call) -> Receipt[Any]:
        return Receipt(
            7,
            call.address,
            duplicate=False,
            wait=lambda _: self._answer(call),
            block=lambda _: asyncio.run(self._answer(call)),
            cancel=lambda: self.cancel(7),
            cancel_blocking=lambda: asyncio.run(self.cancel(7)),
        )

    async def _answer(self, call: Call) -> Any:
        reply = await self._turn(call)
        return result_of(decode_reply(reply.request_id, reply.encode()), call.message, LIMITS)

    async def _turn(self, call: Call) -> Reply:
        definition, message = call.entity, call.message
        try:
            arguments = message.payload.decode(call.payload, LIMITS)
            values = definition.state.load(self.states.get(call.address))
            activation = definition.new_activation(
                call.address.id, values, read_only=not message.changes_state
            )
            token = current_turn.set(Turn(replace(self.context, headers=call.headers), self))
            try:
                result = message.handler(activation, **arguments)
                value = await result if message.is_async else result
            finally:
                current_turn.reset(token)
            reply = success_reply(1, value, message, LIMITS)
            if message.changes_state:
                self.states[call.address] = definition.state.dump(activation, LIMITS)
        except Failure as failure:
            return failure_reply(1, failure, LIMITS)
        except MalformedMessage as error:
            return defect_reply(1, MalformedMessage, error.what, LIMITS)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
            return defect_reply(1, EntityDefect, f"{type(error).__name__}: {error}", LIMITS)
        return reply


class BlockingInPlace:
    def __init__(self, sender: InPlace) -> None:
        self._sender = sender

    def ask(self, call: Call) -> Any:
        return asyncio.run(finished(partial(self._sender.ask, call)))

    def send(self, call: Call) -> Receipt[Any]:
        return asyncio.run(finished(partial(self._sender.send, call)))

    def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        outcomes: list[BatchOutcome] = asyncio.run(finished(partial(self._sender.send_many, calls)))
        return outcomes

    def broadcast(self, call: Call) -> Broadcast:
        reached: Broadcast = asyncio.run(finished(partial(self._sender.broadcast, call)))
        return reached

    def cancel(self, request_id: int) -> CancelOutcome:
        outcome: CancelOutcome = asyncio.run(finished(partial(self._sender.cancel, request_id)))
        return outcome

    def signal(self, token: str, value: bytes) -> SignalOutcome:
        outcome: SignalOutcome = asyncio.run(finished(partial(self._sender.signal, token, value)))
        return outcome


async def finished(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()


class InPlaceApp(EntityQ):
    """With `in_place` instead of a client."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("bank", **settings)
        self.in_place = InPlace()

    def sender(self) -> Sender:
        return self.in_place
