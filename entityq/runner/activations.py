"""Makes the activations of one incarnation, runs their turns, and undoes what was not applied."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any

from psycopg import Error as PostgresError

from entityq.address import Address
from entityq.batching import BatcherClosed
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.errors import EntityNotAssigned, MailboxFull
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner.activation import Activation, Limits
from entityq.runner.answers import Answers
from entityq.runner.attempts import suspected
from entityq.runner.deferrals import Deferrals
from entityq.runner.newer_code import leave_for_newer_code
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.prefetch import Prefetch
from entityq.runner.put_offs import PutOff
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.runner.shard_table import ShardTable
from entityq.runner.suspects import NotMarked, Suspects
from entityq.runner.tasks import Tasks
from entityq.runner.turn_ends import TurnDropped, TurnSetBack, TurnSuspended
from entityq.runner.turn_slots import TurnSlots
from entityq.runner.turns import Turns
from entityq.schema import NewerState

log = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 1.0
LONGEST_PAUSE = 10.0
LONGEST_WAIT = 30.0


class Activations:
    """What an activation sees of its runner."""

    def __init__(
        self,
        turns: Turns,
        answers: Answers,
        shards: ShardTable,
        tasks: Tasks,
        *,
        facts: CurrentFacts,
        slots: TurnSlots,
        prefetch: Prefetch,
        residents: Residents,
        deferrals: Deferrals,
        suspects: Suspects,
        limits: Limits,
        put_off: Callable[[PutOff], Awaitable[bool]],
    ) -> None:
        """`put_off`: makes a task a timer; whether it is one."""
        self.slots = slots
        self._turns = turns
        self._answers = answers
        self._shards = shards
        self._tasks = tasks
        self._facts = facts
        self._prefetch = prefetch
        self._residents = residents
        self._deferrals = deferrals
        self._suspects = suspects
        self._limits = limits
        self._put_off = put_off

    def new(self, definition: EntityDefinition, address: Address, owned: OwnedShard) -> Activation:
        activation = Activation(definition, address, owned.tenure, self, limits=self._limits)
        self._residents.add(activation)
        return activation

    # ----- turns

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.start_turn(work, name)

    async def take_turn(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        try:
            async with self._alone(activation, request):
                await self._turns.take(activation, request, message)
        except (TurnDropped, NotMarked) as dropped:
            log.warning(
                "turn.dropped request=%s entity=%s: %s", request.request_id, activation.address, dropped
            )
            if isinstance(dropped, TurnDropped):
                await self._pause(activation, dropped)
            await self._drop(activation, request, message)
        except NewerState as newer:
            self._leave(activation, request, str(newer))
        except TurnSetBack as setback:
            log.warning(
                "turn.retry request=%s entity=%s attempt=%s: %s",
                request.request_id,
                activation.address,
                request.attempt,
                setback,
            )
            self._step_aside(activation, request, setback, as_of=time.monotonic())
            if message.changes_state:
                await activation.end_instance()
            self._deferrals.look_again()
        except TurnSuspended as suspended:
            log.info(
                "turn.suspended request=%s entity=%s: %s", request.request_id, activation.address, suspended
            )
            self._step_aside(activation, request, suspended, as_of=suspended.as_of)
            self._deferrals.look_again()
        except (LeaseLost, BatcherClosed):
            log.info("turn.lease_lost request=%s entity=%s", request.request_id, activation.address)
        except Exception:
            # Ours, not the handler's. The request stays accepted; it is not hammered.
            log.exception("turn.failed request=%s entity=%s", request.request_id, activation.address)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
            await self._drop(activation, request, message)
        finally:
            self._prefetch.remove()

    async def _pause(self, activation: Activation, dropped: TurnDropped) -> None:
        if dropped.sends_to:
            self._facts.outdated()
        if dropped.pause:
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
        if self._waits(activation, dropped.sends_to):
            await self._until_open(activation, dropped.sends_to)

    async def _until_open(self, activation: Activation, types: Set[str]) -> None:
        """While a group of these is closed, a handler that sends to it is not run again: for a while at most,
        because its request holds a place of the prefetch. Ends when the shard is to be given up.
        """
        end = time.monotonic() + LONGEST_PAUSE
        with self.slots.lent():
            while self._waits(activation, types) and time.monotonic() < end:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PAUSE_AFTER_FAILURE):
                        await self._facts.change()

    def _waits(self, activation: Activation, types: Set[str]) -> bool:
        return self._facts.now.closed(types) and self._shards.under(activation.tenure) is not None

    def drained(self, activation: Activation) -> None:
        """A turn of the activation has ended."""
        if activation.idle:
            if activation.definition.stateless:
                self._residents.remove(activation)
            else:
                self._residents.became_idle(activation)
        self._deferrals.look_again()

    def take_out(self, activation: Activation, request_id: int) -> Request | None:
        """A request that has not started leaves the mailbox, to be answered."""
        request = activation.take_out(request_id)
        if request is not None:
            self._prefetch.remove()
            # Those behind it may have waited for its limit.
            activation.pump()
            self.drained(activation)
        return request

    def _alone(self, activation: Activation, request: Request) -> AbstractAsyncContextManager[None]:
        if not suspected(request.lost):
            return nullcontext()
        return self._suspects.turn(request, activation.tenure)

    # ----- what must be undone

    async def _drop(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        """A turn was not applied: the outbox says what is still to be done, in order.

        Its instance ends with it: the state in memory is not the stored one. A turn that does not own the
        state leaves the instance to the one that does.
        """
        if message.changes_state:
            self.empty_mailbox(activation)
        owned = self._shards.under(activation.tenure)
        if owned is not None:
            owned.intake.forget(request.request_id)
            if request.envelope.persisted:
                # The entity, not the shard: what a running pass still brings must wait behind this request.
                self._deferrals.defer(owned.shard_id, activation.address)
        if message.changes_state:
            activation.forget_state()
            await activation.end_instance()
        self._deferrals.look_again()

    def _leave(self, activation: Activation, request: Request, why: str) -> None:
        """This runner's code cannot read the stored state: what is behind a persisted request waits with it."""
        owned = self._shards.under(activation.tenure)
        if owned is None:
            return
        left = [request]
        if request.envelope.persisted:
            left += [behind for behind, _ in activation.mailbox]
            self._left(left)
            self._prefetch.remove(len(activation.mailbox))
            activation.mailbox.clear()
        for each in left:
            leave_for_newer_code(
                owned,
                each,
                why,
                event="request.newer_state",
                answers=self._answers,
                deferrals=self._deferrals,
            )

    def _step_aside(
        self, activation: Activation, request: Request, end: TurnSetBack | TurnSuspended, *, as_of: float
    ) -> None:
        """Until the next attempt the request is in the outbox alone.

        So are those behind it, unless it is parked: nothing of the entity's has a place that others may need.
        """
        owned = self._shards.under(activation.tenure)
        if owned is not None:
            if end.parked:
                owned.intake.answered(request.request_id, request.seq)
                self._acknowledge(owned, [request])
            else:
                until = time.monotonic() + end.delay
                self._deferrals.back_off(owned.shard_id, activation.address, until, as_of=as_of)
                self._leave_ordered(activation, owned, request)

    def _leave_ordered(self, activation: Activation, owned: OwnedShard, failed: Request) -> None:
        """Volatile and concurrent requests stay: they need not wait."""
        kept = [entry for entry in activation.mailbox if entry[1] or not entry[0].envelope.persisted]
        left = [entry[0] for entry in activation.mailbox if not entry[1] and entry[0].envelope.persisted]
        activation.mailbox.clear()
        activation.mailbox.extend(kept)
        self._left(left)
        self._prefetch.remove(len(left))
        for request in (failed, *left):
            owned.intake.forget(request.request_id)
        self._acknowledge(owned, [failed, *left])

    def _left(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._limits.left(request)

    def step_aside(self, activation: Activation, request: Request, return_after: Callable[[], float]) -> bool:
        """Too many wait for its limit: it waits in Postgres. Whether its entity is to be called in, later."""
        owned = self._shards.under(activation.tenure)
        ordered = request.envelope.persisted and not activation.definition.stateless
        if owned is None or not any(waiting is request for waiting, _ in activation.mailbox):
            return False
        if ordered:
            # It would come back by itself, too, should nobody call it in.
            until = time.monotonic() + LONGEST_WAIT
            self._deferrals.back_off(owned.shard_id, activation.address, until)
        activation.take_out(request.request_id)
        self._prefetch.remove()
        if ordered:
            self._leave_ordered(activation, owned, request)
        self.drained(activation)
        if ordered:
            return True
        if request.envelope.persisted:
            late = PutOff(owned.tenure, request, return_after())
            self._tasks.start(self._wait_in_postgres(owned, late), f"put off {request.request_id}")
        else:
            owned.intake.forget(request.request_id)
            text = f"too many requests wait for the limit of {request.envelope.message}: try again later"
            self._answers.refuse(request, MailboxFull, text)
            activation.pump()
        return False

    async def _wait_in_postgres(self, owned: OwnedShard, late: PutOff) -> None:
        request = late.request
        try:
            moved = await self._put_off(late)
        except (PostgresError, LeaseLost, BatcherClosed) as error:
            log.warning("turn.not_put_off request=%s: %s; the sweep finds it", request.request_id, error)
            moved = False
        if moved:
            owned.intake.answered(request.request_id, request.seq)
            self._acknowledge(owned, [request])
        else:
            owned.intake.forget(request.request_id)

    def too_late(self, activation: Activation, request: Request) -> None:
        """A volatile request has waited for its limit until its deadline."""
        owned = self._shards.under(activation.tenure)
        self.take_out(activation, request.request_id)
        if owned is not None:
            owned.intake.forget(request.request_id)
            text = f"{request.envelope.message} waited for its limit until the time of its caller was over"
            self._answers.refuse(request, MailboxFull, text)

    def _acknowledge(self, owned: OwnedShard, requests: Sequence[Request]) -> None:
        entry_ids = [request.entry_id for request in requests if request.entry_id is not None]
        self._answers.acknowledge(owned, entry_ids)

    def empty_mailbox(self, activation: Activation) -> None:
        """Requests that have not started leave the runner: the outbox, or the stream, still has them."""
        owned = self._shards.under(activation.tenure)
        for request, _ in activation.mailbox:
            self._limits.left(request)
            self._prefetch.remove()
            if owned is None:
                continue
            owned.intake.forget(request.request_id)
            if not request.envelope.persisted:
                text = f"{activation.address} is being restarted"
                self._answers.refuse(request, EntityNotAssigned, text)
        activation.mailbox.clear()
