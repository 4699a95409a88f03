"""A cluster of one process without servers: the client, the runner, and an outbox in memory.

What decides how an entity behaves is the runner's own code (activations, turns, the sender of a turn, the
judgement of a repeat). Missing is what servers are for: nothing survives the process. Defects are retried
under their policy, without the wait.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Self

from entityq.address import Address
from entityq.broadcast import Broadcast
from entityq.call import Call
from entityq.cancel_outcome import CancelOutcome
from entityq.client.blocking import GRACE, BlockingClient, HomeLoop, Work
from entityq.client.canceller import refuse_volatile
from entityq.client.encoding import Encoder
from entityq.client.send import Send
from entityq.client.silence import explain_silence
from entityq.codec import Limits
from entityq.context import test_home
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.envelope import decode_envelope
from entityq.errors import (
    EntityQError,
    MailboxFull,
    PrimaryKeyConflict,
    RunnerNotRegistered,
    SendTimeout,
)
from entityq.ports import BatchOutcome, Home
from entityq.postgres.outbox import NewRequest
from entityq.receipt import Receipt
from entityq.replies import defect_reply, result_of
from entityq.reply import Reply, decode_reply
from entityq.runner.activation import Activation
from entityq.runner.commit import Applied, Commit
from entityq.runner.passivation import Passivation
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.runner.setbacks import Setback
from entityq.runner.tasks import Tasks
from entityq.runner.turn import TurnLimits
from entityq.runner.turn_ends import TurnSetBack, TurnSuspended
from entityq.runner.turn_sender import TurnSender
from entityq.runner.turn_slots import TurnSlots
from entityq.runner.turns import Turns
from entityq.signal_outcome import SignalOutcome
from entityq.snowflake import Snowflakes, client_machine
from entityq.status import EntityStatus
from entityq.testing.broadcasting import broadcast_to
from entityq.testing.cancelling import TENURE, Cancelling
from entityq.testing.memory_outbox import SHARD, MemoryOutbox
from entityq.testing.memory_signals import MemorySignals
from entityq.testing.memory_streams import MemoryStreams
from entityq.testing.no_transaction import NoTransaction
from entityq.testing.waiting import Waiting


class InProcess:
    """A Sender. Made by `open` on the event loop that runs the entities; ended by `close`."""

    def __init__(self, home: Home, definitions: Mapping[str, EntityDefinition]) -> None:
        settings = home.settings
        ids = Snowflakes(client_machine())
        self.slots = TurnSlots(settings.max_turns)
        self._definitions = definitions
        self._settings = settings
        self._encoder = Encoder(settings.namespace, ids.new(), ids)
        self._envelopes = Limits(max_bytes=settings.max_payload + 65_536)
        self._limits = TurnLimits(Limits(settings.max_reply), Limits(settings.max_state))
        self._outbox = MemoryOutbox()
        self._streams = MemoryStreams()
        self._waiting = Waiting()
        self._replies: dict[int, asyncio.Future[bytes]] = {}
        self._signals = MemorySignals(self._replies, self._waiting.now)
        self._residents = Residents(settings.max_resident)
        self._cancels = Cancelling(
            self._replies,
            self._waiting,
            self._residents,
            self._signals,
            outbox=self._outbox,
            answer=self._answer,
            drained=self.drained,
            envelopes=self._envelopes,
            limits=self._limits.reply,
        )
        self._passivation = Passivation(self._residents, self, ended=lambda: None)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="entityq turn")
        self._turns = Turns(
            self._outbox,
            sender_of=lambda request: TurnSender(request, self, self.slots.lent),
            transaction_of=lambda request, tenure: NoTransaction(),
            signals=self._signals,
            streams=self._streams.of_turns(self.slots.lent, self._limits.reply),
            commit=self._outbox.commit,
            set_back=_nothing_to_record,
            applied=self._applied,
            answer=self._answer,
            threads=self._threads,
            serializer=home.serializer,
            limits=self._limits,
            clock=self._waiting.now,
        )
        self._loop = asyncio.get_running_loop()
        self._home_loop = HomeLoop()
        self._started = asyncio.Event()
        self._closing = asyncio.Event()
        # As in another process: handlers see nothing of the context of whoever opened this, or sends to them.
        self._context = contextvars.Context()
        self._context.run(test_home.set, home)
        self._tasks = self._context.run(Tasks, TENURE.incarnation)
        self._main = self._loop.create_task(self._run(), name="entityq testing", context=self._context)

    @classmethod
    async def open(cls, home: Home, definitions: Mapping[str, EntityDefinition]) -> Self:
        in_process = cls(home, definitions)
        await in_process._started.wait()
        return in_process

    async def close(self) -> None:
        """Turns that still run are cancelled. Raises what ended this before."""
        self._closing.set()
        await self._main

    async def _run(self) -> None:
        try:
            async with self._tasks:
                self.start(self._passivation.run(), "passivation")
                self._started.set()
                await self._closing.wait()
                raise _Closed
        except* _Closed:
            pass
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for activation in self._residents:
            await activation.end_instance()

    # ----- Sender

    async def send(self, call: Call) -> Receipt[Any]:
        receipt: Receipt[Any] = await self._home_loop.run(partial(self._send, call))
        return receipt

    async def send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        outcomes: list[BatchOutcome] = await self._home_loop.run(partial(self._send_many, calls))
        return outcomes

    async def ask(self, call: Call) -> Any:
        return await self._home_loop.run(partial(self._ask, call))

    async def broadcast(self, call: Call) -> Broadcast:
        return await self._home_loop.run(partial(self._broadcast, call))

    async def cancel(self, request_id: int) -> CancelOutcome:
        return await self._home_loop.run(partial(self._cancels.cancel, request_id))

    async def signal(self, token: str, value: bytes) -> SignalOutcome:
        return await self._home_loop.run(partial(self._signals.signal, token, value))

    async def stream(self, call: Call, request_id: int, after: int) -> AsyncGenerator[Any, None]:
        schema = call.message.values
        for number in count(after + 1):
            value = await self._home_loop.run(partial(self._value, call, request_id, number))
            if value is None:
                return
            yield schema.decode(value, self._limits.reply)

    async def status(self, address: Address) -> EntityStatus:
        return self._signals.status(address, self._outbox.status(address))

    def blocking(self) -> BlockingClient:
        settings = self._settings
        return BlockingClient(
            self._run_blocking, send_timeout=settings.send_timeout, ask_timeout=settings.ask_timeout
        )

    def new_request(self, call: Call) -> NewRequest:
        """For a turn. Raises RunnerNotRegistered."""
        self._require_known(call)
        return self._encoder.request(call)

    # ----- cancels and signals

    async def _cancel_call(self, call: Call, request_id: int) -> CancelOutcome:
        return await (self._cancels.cancel(request_id) if call.message.persisted else refuse_volatile(call))

    # ----- for tests

    async def advance(self, seconds: float) -> None:
        """The clock goes forward, and requests that are due by then are delivered."""
        await self._home_loop.run(partial(self._advance, seconds))

    def advance_blocking(self, seconds: float) -> None:
        self._home_loop.run_blocking(partial(self._advance, seconds), GRACE)

    async def _advance(self, seconds: float) -> None:
        for request, seq in self._waiting.advance(seconds):
            self._deliver(request.envelope, seq)
        self._signals.advance()

    async def settle(self) -> None:
        """Waits until every request that is due is answered. Raises SendTimeout after the setting ask_timeout."""
        await self._home_loop.run(self._settle)

    def settle_blocking(self) -> None:
        self._home_loop.run_blocking(self._settle, self._settings.ask_timeout + GRACE)

    async def _settle(self) -> None:
        limit = self._settings.ask_timeout
        deadline = self._loop.time() + limit
        while waiting := self._unanswered():
            done = await self._first_done(waiting, deadline - self._loop.time())
            if not done:
                raise SendTimeout(f"{len(waiting)} requests are not answered within {limit:g} s")

    def _unanswered(self) -> set[asyncio.Future[bytes]]:
        later = self._waiting.request_ids | self._signals.suspended
        return {
            reply
            for request_id, reply in self._replies.items()
            if not reply.done() and request_id not in later
        }

    # ----- from the call to the mailbox

    async def _send(self, call: Call) -> Receipt[Any]:
        request_id, duplicate = self._accept(call, None)

        async def wait(patience: float | None) -> Any:
            return await self._home_loop.run(partial(self._result, call, request_id, patience))

        def block(patience: float | None) -> Any:
            limit = self._patience(call, patience) + GRACE
            return self._home_loop.run_blocking(partial(self._result, call, request_id, patience), limit)

        cancel = partial(self._cancel_call, call, request_id)
        return Receipt(
            request_id,
            call.address,
            duplicate=duplicate,
            wait=wait,
            block=block,
            cancel=lambda: self._home_loop.run(cancel),
            cancel_blocking=lambda: self._home_loop.run_blocking(cancel, GRACE),
        )

    async def _send_many(self, calls: Sequence[Call]) -> list[BatchOutcome]:
        for call in calls:
            self._require_known(call)
        outcomes: list[BatchOutcome] = []
        for call in calls:
            try:
                outcomes.append(await self._send(call))
            except PrimaryKeyConflict as conflict:
                outcomes.append(conflict)
        return outcomes

    async def _ask(self, call: Call) -> Any:
        request_id, _ = self._accept(call, self._patience(call, None))
        return await self._result(call, request_id, None)

    def _accept(self, call: Call, timeout: float | None) -> tuple[int, bool]:
        """The id of the request that is to be waited for, and whether its primary key was known."""
        self._require_open()
        self._require_known(call)
        request = self._encoder.request(call, timeout)
        if not call.message.persisted:
            self._deliver(request.envelope, 0)
            return request.request_id, False
        acceptance = self._outbox.insert(Send(call, request, self._loop.time()))
        if acceptance.stored is not None:
            self._arrive(request, acceptance.stored.seq)
        return acceptance.request_id, acceptance.duplicate

    def _arrive(self, request: NewRequest, seq: int) -> None:
        self._replies[request.request_id] = self._loop.create_future()
        if not self._waiting.takes(request, seq):
            self._deliver(request.envelope, seq)

    def _deliver(self, encoded: bytes, seq: int) -> None:
        envelope = decode_envelope(encoded, self._envelopes)
        self._replies.setdefault(envelope.request_id, self._loop.create_future())
        self._admit(Request(envelope, SHARD, seq, None))

    def _admit(self, request: Request) -> None:
        envelope = request.envelope
        definition = self._definitions[envelope.address.type]
        activation = self._residents.get(SHARD, envelope.address)
        if activation is None:
            activation = Activation(definition, envelope.address, TENURE, self)
            self._residents.add(activation)
        elif not envelope.persisted and activation.queued >= definition.mailbox_capacity:
            text = f"the mailbox of {envelope.address} is full: try again later"
            self._answer(request, defect_reply(request.request_id, MailboxFull, text, self._limits.reply))
            return
        self._residents.busy(activation)
        activation.deliver(request, definition.messages[envelope.message])

    async def _broadcast(self, call: Call) -> Broadcast:
        self._require_open()
        self._require_known(call)

        def deliver(address: Address) -> None:
            self._deliver(self._encoder.request(replace(call, address=address)).envelope, 0)

        return broadcast_to(self._residents, call.entity, deliver)

    def _require_known(self, call: Call) -> None:
        if self._definitions.get(call.address.type) is not call.entity:
            raise RunnerNotRegistered(
                f"{call.address} cannot get {call.message.name}: this test client has no {call.address.type}",
                advice=f"Add it: testing.client(..., {call.address.type}).",
            )

    def _require_open(self) -> None:
        if self._closing.is_set():
            raise EntityQError("The test client is closed", advice="Send inside of its `with` block.")

    # ----- what activations and passivation call

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.start(work, name)

    async def take_turn(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        try:
            await self._turns.take(activation, request, message)
        except TurnSetBack as setback:
            await self._try_again(activation, request, message, parked=setback.parked)
        except TurnSuspended as suspended:
            if suspended.parked:
                self.start(self._come_back(request), f"wait of {request.request_id}")
                return
            with self.slots.lent():
                await self._signals.resumed(request)
            await self.take_turn(activation, request, message)

    async def _come_back(self, request: Request) -> None:
        """What is parked comes after what is in the mailbox when its signal comes."""
        await self._signals.resumed(request)
        self._admit(request)

    async def _try_again(
        self, activation: Activation, request: Request, message: MessageDefinition, *, parked: bool
    ) -> None:
        """Without the wait. What is parked comes after what is in the mailbox now."""
        if message.changes_state:
            await activation.end_instance()
        again = replace(request, retries=request.retries + 1)
        if parked:
            activation.mailbox.append((again, message.concurrent))
        else:
            activation.mailbox.appendleft((again, message.concurrent))

    def drained(self, activation: Activation) -> None:
        if activation.idle and activation.definition.stateless:
            self._residents.remove(activation)
        elif activation.idle:
            self._residents.became_idle(activation)

    # ----- from the turn to the reply

    def _applied(self, commit: Commit, applied: Applied) -> None:
        for row in applied.sent:
            self._arrive(row.request, row.seq)
        self._replies[commit.request.request_id].set_result(commit.encoded_reply)

    def _answer(self, request: Request, reply: Reply) -> None:
        self._replies[request.request_id].set_result(reply.encode())

    async def _result(self, call: Call, request_id: int, patience: float | None) -> Any:
        limit, reply = self._patience(call, patience), self._replies[request_id]
        await self._first_done({reply}, limit)
        if not reply.done():
            raise explain_silence(call, request_id, limit, None)
        return result_of(decode_reply(request_id, reply.result()), call.message, self._limits.reply)

    async def _value(self, call: Call, request_id: int, number: int) -> bytes | None:
        """None: the stream has ended before. Raises what it has ended with, if that is no success."""
        limit, reply = self._patience(call, None), self._replies[request_id]
        deadline = self._loop.time() + limit
        while (value := self._streams.value(request_id, number)) is None and not reply.done():
            more = self._streams.more(request_id)
            if not await self._first_done({reply, more}, deadline - self._loop.time()):
                raise explain_silence(call, request_id, limit, None)
        if value is None:
            await self._result(call, request_id, None)
        return value

    async def _first_done(
        self, replies: set[asyncio.Future[bytes]], seconds: float
    ) -> set[asyncio.Future[Any]]:
        """Those of the replies that are there. Raises what ended all turns, if something did."""
        waited: set[asyncio.Future[Any]] = {*replies, self._main}
        done, _ = await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._main in done and not done & replies:
            self._main.result()
            raise EntityQError("The test client was closed before the request was answered")
        return done

    def _patience(self, call: Call, patience: float | None) -> float:
        if patience is not None:
            return patience
        return self._settings.ask_timeout if call.timeout is None else call.timeout

    def _run_blocking(self, work: Work[Any], seconds: float) -> Any:
        return self._home_loop.run_blocking(lambda: work(self), seconds)


async def _nothing_to_record(setback: Setback) -> bool:
    del setback
    return True


class _Closed(Exception):
    """Ends the tasks."""
