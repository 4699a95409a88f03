"""The pipeline of a turn: activate, perform, commit, announce.

What can be decided without a server is in `turn.py`; this module puts the steps in order.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import NoReturn

from psycopg import Error as PostgresError

from entityq.batching import BatcherClosed
from entityq.cause import cause_of
from entityq.context import Turn, current_turn
from entityq.definition import FORGET, MessageDefinition
from entityq.definition import Activation as Instance
from entityq.errors import EntityQError
from entityq.ports import States
from entityq.postgres.pinned_connection import LeaseLost
from entityq.replies import success_reply
from entityq.reply import Outcome, Reply
from entityq.runner.activation import Activation
from entityq.runner.chunk_writer import ChunksLost, ChunkWriter
from entityq.runner.commit import Applied, Commit, Committed, NotApplied, Tenure
from entityq.runner.defect import Defect, next_attempt
from entityq.runner.giving_up import give_up, log_given_up, refused
from entityq.runner.request import Request
from entityq.runner.setbacks import Setback
from entityq.runner.streams import Streams
from entityq.runner.suspensions import Suspension
from entityq.runner.transactions import HandlerTransaction
from entityq.runner.turn import TurnLimits, expired, handler_defect, interrupted, perform, swallowed
from entityq.runner.turn_ends import TurnDropped, TurnSetBack
from entityq.runner.turn_sender import TurnSender
from entityq.runner.turn_signals import Signals, Suspended, TurnSignals
from entityq.runner.user_errors import USER_ERRORS, raise_if_cancelled
from entityq.runner.waits import has_waited, resume, suspend
from entityq.schema import NewerState
from entityq.serializer import Serializer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """One turn that runs a handler; `began` is on the clock of `time.monotonic`."""

    activation: Activation
    request: Request
    message: MessageDefinition
    sender: TurnSender
    began: float = field(default_factory=time.monotonic)


class Turns:
    """Runs the turns of one incarnation.

    Args:
        sender_of: the Sender for the code of one turn.
        transaction_of: the transaction that the code of one turn can begin.
        signals: what turns wait for.
        streams: take what handlers yield.
        commit: submits to the committer and returns what became of the commit.
        set_back: puts a failed attempt on record; whether the request is still there to be tried again.
        applied: called after a commit, with the outgoing requests that are to be published.
        answer: called with the reply of a volatile request.
        clock: unix time in seconds: what requests expire by.
    """

    def __init__(
        self,
        states: States,
        *,
        sender_of: Callable[[Request], TurnSender],
        transaction_of: Callable[[Request, Tenure], HandlerTransaction],
        signals: Signals,
        streams: Streams,
        commit: Callable[[Commit], Awaitable[Committed]],
        set_back: Callable[[Setback], Awaitable[bool]],
        applied: Callable[[Commit, Applied], None],
        answer: Callable[[Request, Reply], None],
        threads: Executor,
        serializer: Serializer,
        limits: TurnLimits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._states = states
        self._sender_of = sender_of
        self._transaction_of = transaction_of
        self._signals = signals
        self._streams = streams
        self._commit = commit
        self._set_back = set_back
        self._applied = applied
        self._answer = answer
        self._threads = threads
        self._serializer = serializer
        self._limits = limits
        self._clock = clock

    async def take(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        """One turn, to its end.

        Raises TurnDropped when it was not applied, TurnSetBack when the request is to be tried again later,
        TurnSuspended when it waits for a signal, NewerState when this code is too old for the stored state.
        """
        if request.envelope.expired(self._clock()) and not await has_waited(self._signals, request):
            await self._expired(activation, request)
            return
        if message.name == FORGET:
            await self._forget(activation, request, message)
            return
        attempt = _Attempt(activation, request, message, self._sender_of(request))
        if not request.envelope.persisted:
            await self._volatile(attempt)
        elif message.concurrent:
            await self._concurrent(attempt)
        else:
            await resume(self._signals, request)
            transaction = self._transaction_of(request, activation.tenure)
            signals = TurnSignals(request, self._signals)
            try:
                await self._ordered(attempt, transaction, signals)
            except Suspended:
                await self._suspend(attempt, transaction, signals)
            finally:
                await transaction.end()

    async def _expired(self, activation: Activation, request: Request) -> None:
        reply = expired(request, self._limits)
        if request.envelope.persisted:
            await self._finish(activation, Commit(activation.tenure, request, reply, reply.encode()))
        else:
            self._answer(request, reply)

    # ----- the three kinds of turns

    async def _ordered(
        self, attempt: _Attempt, transaction: HandlerTransaction, signals: TurnSignals
    ) -> None:
        activation = attempt.activation
        result = await self._run(attempt, self._activated(activation), transaction, signals)
        if signals.refusal is not None:
            raise TurnDropped(signals.refusal)
        if signals.waits_for is not None:
            result = swallowed(attempt.request, result, signals.waits_for[0], self._limits)
        state = activation.state
        if not isinstance(result, Defect) and result.outcome is Outcome.SUCCESS:
            try:
                state = self._dumped(activation)
            except EntityQError as error:
                result = handler_defect(attempt.request, error, self._limits, lasting=True)
        result = await transaction.settle(result, self._limits)
        _require_applicable(transaction)
        if isinstance(result, Defect):
            # Whatever looks at the instance before it ends sees what is committed.
            self._restore(activation)
            state = activation.state
        commit = await self._new_commit(attempt, result)
        commit.version = None if activation.definition.stateless else activation.version
        if state != activation.state or (commit.version == 0 and commit.reply.outcome is Outcome.SUCCESS):
            commit.state = state
        await self._finish(activation, commit, transaction)

    def _dumped(self, activation: Activation) -> bytes | None:
        """The state as the turn has left it. Raises MalformedMessage, PayloadTooLarge."""
        if activation.instance is None:
            return activation.state
        return activation.definition.state.dump(activation.instance, self._limits.state)

    async def _forget(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        """Without an instance: an entity whose stored state no code can read must be forgettable, too."""
        async with activation.loading:
            await self._load(activation)
        reply = success_reply(request.request_id, None, message, self._limits.reply)
        commit = Commit(activation.tenure, request, reply, reply.encode(), forget=True)
        commit.version = None if activation.definition.stateless else activation.version
        await self._finish(activation, commit)

    async def _concurrent(self, attempt: _Attempt) -> None:
        result = await self._run(attempt, self._read_only(attempt.activation))
        await self._finish(attempt.activation, await self._new_commit(attempt, result))

    async def _volatile(self, attempt: _Attempt) -> None:
        result = await self._run(attempt, self._read_only(attempt.activation))
        self._answer(attempt.request, result.reply if isinstance(result, Defect) else result)

    # ----- activate

    async def _activated(self, activation: Activation) -> Instance:
        async with activation.loading:
            if activation.instance is None:
                activation.instance = await self._new_instance(activation)
            return activation.instance

    async def _new_instance(self, activation: Activation) -> Instance:
        definition = activation.definition
        await self._load(activation)
        activation.state = definition.state.upcast(activation.state, activation.state_version)
        activation.state_version = definition.state.version
        instance = definition.new_activation(activation.address.id, definition.state.load(activation.state))
        await instance.on_activate()
        return instance

    async def _load(self, activation: Activation) -> None:
        if not activation.definition.stateless and activation.version == 0:
            stored = await self._states.load(activation.tenure.shard_id, activation.address)
            activation.version, activation.state = stored.version, stored.state
            activation.state_version = stored.state_version

    async def _read_only(self, activation: Activation) -> Instance:
        """A copy of the last committed state, with what the activation keeps in memory (`_` names)."""
        live = await self._activated(activation)
        definition = activation.definition
        values = definition.state.load(activation.state)
        copy = definition.new_activation(activation.address.id, values, read_only=True)
        kept = {name: value for name, value in vars(live).items() if name not in definition.state.fields}
        vars(copy).update({**kept, **{name: vars(copy)[name] for name in ("__role__", "__address__")}})
        return copy

    # ----- perform

    async def _run(
        self,
        attempt: _Attempt,
        instance: Awaitable[Instance],
        transaction: HandlerTransaction | None = None,
        signals: TurnSignals | None = None,
    ) -> Reply | Defect:
        activation, request = attempt.activation, attempt.request
        try:
            ready = await instance
        except (BatcherClosed, NewerState):
            # The life of the runner ends, or its code is too old, which says nothing about the request.
            raise
        except USER_ERRORS as error:  # a stored state that does not fit, or the user's on_activate
            raise_if_cancelled(error)
            return handler_defect(request, error, self._limits)
        if transaction is not None and attempt.message.transactional:
            await transaction.begin_for(is_async=attempt.message.is_async)
            _require_applicable(transaction)
        try:
            async with self._streams.turn(request, activation.tenure, attempt.message) as chunks:
                return await self._perform(attempt, ready, transaction, signals, chunks)
        except ChunksLost as lost:
            if isinstance(lost.reason, BatcherClosed | LeaseLost):
                raise lost.reason from None
            raise TurnDropped(lost.reason) from None
        except EntityQError as error:  # its last chunk does not fit this code
            return handler_defect(request, error, self._limits)

    async def _perform(
        self,
        attempt: _Attempt,
        instance: Instance,
        transaction: HandlerTransaction | None,
        signals: TurnSignals | None,
        chunks: ChunkWriter | None,
    ) -> Reply | Defect:
        activation, sender = attempt.activation, attempt.sender
        sender.begin(attempt.message.time_limit)
        context = sender.context(activation.tenure.epoch, activation.version)
        last_chunk = None if chunks is None else chunks.last
        context = replace(context, own_transaction=transaction, own_signals=signals, last_chunk=last_chunk)
        token = current_turn.set(Turn(context, sender))
        try:
            return await perform(
                attempt.request,
                instance,
                attempt.message,
                threads=self._threads,
                serializer=self._serializer,
                limits=self._limits,
                chunks=chunks,
            )
        finally:
            sender.end()
            if signals is not None:
                signals.end()
            current_turn.reset(token)

    # ----- wait for a signal

    async def _suspend(
        self, attempt: _Attempt, transaction: HandlerTransaction, signals: TurnSignals
    ) -> None:
        """The attempt leaves nothing behind but that it waits."""
        activation, request = attempt.activation, attempt.request
        if signals.waits_for is None:
            raise AssertionError("a turn is suspended by its own wait")
        name, timeout = signals.waits_for
        await transaction.settle(interrupted(request, self._limits), self._limits)  # no success: rolled back
        self._restore(activation)
        parked = activation.definition.parks(attempt.message)
        await suspend(self._signals, Suspension(activation.tenure, request, name, timeout, parked))

    # ----- commit

    async def _new_commit(self, attempt: _Attempt, result: Reply | Defect) -> Commit:
        """Of a reply, or of a request that is given up. Raises TurnSetBack for one that is to be tried again."""
        tenure, request = attempt.activation.tenure, attempt.request
        if isinstance(result, Defect) and request.cancelled:
            result = interrupted(request, self._limits)  # and not tried again
        if not isinstance(result, Defect):
            sends = attempt.sender.sent if result.outcome is Outcome.SUCCESS else []
            commit = Commit(tenure, request, result, result.encode(), sends=sends)
            commit.state_version = attempt.activation.definition.state.version
            return commit
        definition, began, now = attempt.activation.definition, attempt.began, time.monotonic()
        policy = definition.policy(attempt.message)
        delay = next_attempt(policy, request, result, began=began, now=now)
        if delay is not None:
            parked = definition.parks(attempt.message)
            await self._step_back(Setback(tenure, request, delay, now - began, parked))
        commit = Commit(tenure, request, result.reply, result.reply.encode())
        commit.given_up, commit.attempts = cause_of(result.error), request.attempt
        return commit

    async def _step_back(self, setback: Setback) -> NoReturn:
        try:
            recorded = await self._set_back(setback)
        except PostgresError as error:
            raise TurnDropped(error) from None
        if not recorded:
            raise TurnDropped(NotApplied("the request is answered, or its lease is gone"))
        raise TurnSetBack(setback.delay, parked=setback.parked)

    async def _finish(
        self, activation: Activation, commit: Commit, transaction: HandlerTransaction | None = None
    ) -> None:
        """`transaction`: joined if the handler has begun it, and what it did is to be committed."""
        outcome = await self._committed(commit, transaction)
        if not isinstance(outcome, Applied):
            if commit.version is not None:  # others leave the state to the turn beside them
                self._restore(activation)
            defect = refused(commit.request, outcome, self._limits)
            if defect is None:
                raise TurnDropped(outcome, commit.sends)
            give_up(commit, defect)
            outcome = await self._committed(commit)
            if not isinstance(outcome, Applied):
                raise TurnDropped(outcome, commit.sends)
        self._remember(activation, commit)
        if commit.given_up is not None:
            log_given_up(commit)
        self._applied(commit, outcome)
        if commit.forget or (commit.version is not None and commit.given_up is not None):
            # What the handler left in memory may be what was wrong.
            await activation.end_instance()

    async def _committed(
        self, commit: Commit, transaction: HandlerTransaction | None = None
    ) -> Committed | PostgresError:
        try:
            if transaction is not None and transaction.open:
                return await transaction.commit(commit)
            return await self._commit(commit)
        except PostgresError as error:
            return error

    def _remember(self, activation: Activation, commit: Commit) -> None:
        """The activation is now what was committed."""
        if commit.version is None:
            return
        if commit.forget:
            activation.forget_state()
            return
        activation.version = commit.version + 1
        if commit.state is not None:
            activation.state = commit.state
        if commit.reply.outcome is not Outcome.SUCCESS:
            self._restore(activation)

    def _restore(self, activation: Activation) -> None:
        """A turn that raised, or was not committed, leaves the state as it was."""
        if activation.instance is not None:
            values = activation.definition.state.load(activation.state)
            activation.definition.restore(activation.instance, values)


def _require_applicable(transaction: HandlerTransaction) -> None:
    if transaction.refusal is not None:
        raise TurnDropped(transaction.refusal)
