"""The pipeline of a turn: activate, perform, commit, announce.

What can be decided without a server is in `turn.py`; this module puts the steps in order.
"""

import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from psycopg import DataError
from psycopg import Error as PostgresError
from psycopg.errors import DivisionByZero

from entityq.batching import BatcherClosed
from entityq.context import Turn, current_turn
from entityq.definition import FORGET, MessageDefinition
from entityq.definition import Activation as Instance
from entityq.errors import EntityDefect, EntityQError
from entityq.ports import States
from entityq.replies import defect_reply, success_reply
from entityq.reply import Outcome, Reply
from entityq.runner.activation import Activation
from entityq.runner.commit import Applied, Commit, Committed, NotApplied, SendConflict
from entityq.runner.request import Request
from entityq.runner.turn import TurnLimits, handler_defect, perform
from entityq.runner.turn_sender import TurnSender
from entityq.runner.user_errors import USER_ERRORS, raise_if_cancelled
from entityq.schema import NewerState
from entityq.serializer import Serializer

log = logging.getLogger(__name__)


class TurnDropped(Exception):
    """The turn was not applied: its activation is dropped, and the outbox decides what comes next.

    `pause`: what was in the way is still there; trying at once would only run the handler again.
    `sends_to`: the entity types that it sends to, where the group of one of them is closed.
    """

    def __init__(self, outcome: NotApplied | SendConflict | PostgresError, commit: Commit) -> None:
        super().__init__(outcome.reason if isinstance(outcome, NotApplied) else str(outcome))
        refused = isinstance(outcome, NotApplied) and outcome.passing
        self.pause = isinstance(outcome, PostgresError) or refused
        self.sends_to = frozenset(send.address.type for send in commit.sends if refused)


class Turns:
    """Runs the turns of one incarnation.

    Args:
        sender_of: the Sender for the code of one turn.
        commit: submits to the committer and returns what became of the commit.
        applied: called after a commit, with the outgoing requests that are to be published.
        answer: called with the reply of a volatile request.
    """

    def __init__(
        self,
        states: States,
        *,
        sender_of: Callable[[Request], TurnSender],
        commit: Callable[[Commit], Awaitable[Committed]],
        applied: Callable[[Commit, Applied], None],
        answer: Callable[[Request, Reply], None],
        threads: Executor,
        serializer: Serializer,
        limits: TurnLimits,
    ) -> None:
        self._states = states
        self._sender_of = sender_of
        self._commit = commit
        self._applied = applied
        self._answer = answer
        self._threads = threads
        self._serializer = serializer
        self._limits = limits

    async def take(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        """One turn, to its end.

        Raises TurnDropped when it was not applied, NewerState when this code is too old for the stored state.
        """
        if not request.envelope.persisted:
            await self._volatile(activation, request, message)
        elif message.concurrent:
            await self._concurrent(activation, request, message)
        elif message.name == FORGET:
            await self._forget(activation, request, message)
        else:
            await self._ordered(activation, request, message)

    # ----- the three kinds of turns

    async def _ordered(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        sender = self._sender_of(request)
        reply = await self._run(activation, request, message, sender, self._activated(activation))
        state = activation.state
        if reply.outcome is Outcome.SUCCESS and activation.instance is not None:
            try:
                state = activation.definition.state.dump(activation.instance, self._limits.state)
            except EntityQError as error:
                reply = handler_defect(request, error, self._limits)
        commit = self._new_commit(activation, request, reply, sender)
        commit.version = None if activation.definition.stateless else activation.version
        if state != activation.state or (commit.version == 0 and reply.outcome is Outcome.SUCCESS):
            commit.state = state
        await self._finish(activation, commit)

    async def _forget(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        """Without an instance: an entity whose stored state no code can read must be forgettable, too."""
        async with activation.loading:
            await self._load(activation)
        reply = success_reply(request.request_id, None, message, self._limits.reply)
        commit = Commit(activation.tenure, request, reply, reply.encode(), forget=True)
        commit.version = None if activation.definition.stateless else activation.version
        await self._finish(activation, commit)

    async def _concurrent(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        sender = self._sender_of(request)
        reply = await self._run(activation, request, message, sender, self._read_only(activation))
        await self._finish(activation, self._new_commit(activation, request, reply, sender))

    async def _volatile(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        sender = self._sender_of(request)
        reply = await self._run(activation, request, message, sender, self._read_only(activation))
        self._answer(request, reply)

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
        activation: Activation,
        request: Request,
        message: MessageDefinition,
        sender: TurnSender,
        instance: Awaitable[Instance],
    ) -> Reply:
        try:
            ready = await instance
        except (BatcherClosed, NewerState):
            # The life of the runner ends, or its code is too old, which says nothing about the request.
            raise
        except USER_ERRORS as error:  # a stored state that does not fit, or the user's on_activate
            raise_if_cancelled(error)
            return handler_defect(request, error, self._limits)
        token = current_turn.set(Turn(sender.context(activation.tenure.epoch, activation.version), sender))
        try:
            return await perform(
                request,
                ready,
                message,
                threads=self._threads,
                serializer=self._serializer,
                limits=self._limits,
            )
        finally:
            sender.end()
            current_turn.reset(token)

    # ----- commit

    def _new_commit(
        self, activation: Activation, request: Request, reply: Reply, sender: TurnSender
    ) -> Commit:
        sends = sender.sent if reply.outcome is Outcome.SUCCESS else []
        version = activation.definition.state.version
        return Commit(activation.tenure, request, reply, reply.encode(), sends=sends, state_version=version)

    async def _finish(self, activation: Activation, commit: Commit) -> None:
        outcome = await self._committed(commit)
        if not isinstance(outcome, Applied):
            if commit.version is not None:  # others leave the state to the turn beside them
                self._restore(activation)
            reply = _refused(commit.request, outcome, self._limits)
            if reply is None:
                raise TurnDropped(outcome, commit)
            commit.reply, commit.encoded_reply = reply, reply.encode()
            commit.state, commit.sends = None, []
            outcome = await self._committed(commit)
            if not isinstance(outcome, Applied):
                raise TurnDropped(outcome, commit)
        self._remember(activation, commit)
        self._applied(commit, outcome)
        if commit.forget:
            await activation.end_instance()

    async def _committed(self, commit: Commit) -> Committed | PostgresError:
        try:
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


def _refused(
    request: Request, outcome: NotApplied | SendConflict | PostgresError, limits: TurnLimits
) -> Reply | None:
    """The reply to store instead, or None when the turn must be dropped.

    Only what the turn itself wants to write can be its defect; a lock, a full disk and the like pass.
    """
    if isinstance(outcome, SendConflict):
        what = (
            f"the turn sends a request whose primary key is known, with another payload, as request "
            f"{outcome.first_request_id}; nothing of the turn was applied"
        )
        log.error(
            "turn.send_conflict request=%s entity=%s: %s", request.request_id, request.envelope.address, what
        )
        return defect_reply(request.request_id, EntityDefect, what, limits.reply)
    # The statement's own word for "somebody came between" is a division by zero.
    if isinstance(outcome, DataError) and not isinstance(outcome, DivisionByZero):
        return handler_defect(request, outcome, limits)
    return None
