"""One incarnation of a runner: everything that lives and dies with its lease session.

It puts the parts together and is what they call back; each part is in a file of its own. When the session
is lost the whole life ends, and the runner starts another one that has nothing of it.
"""

import asyncio
import logging
from collections.abc import Coroutine, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from psycopg import Error as PostgresError
from psycopg_pool import PoolTimeout

from entityq.address import Address
from entityq.batching import Batcher, BatcherClosed
from entityq.codec import Limits
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.envelope import Envelope
from entityq.errors import EntityNotAssigned, EntityQError, MalformedMessage
from entityq.postgres.backlog import Row
from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.pinned_connection import LeaseLost
from entityq.redis.connect import open_connection
from entityq.redis.consumer import StreamGroups, StreamReader
from entityq.redis.publisher import Publisher
from entityq.replies import defect_reply
from entityq.reply import Reply
from entityq.runner.activation import Activation
from entityq.runner.announcer import Announcer
from entityq.runner.catching_up import CatchingUp
from entityq.runner.commit import Applied, Commit, Committed, SentRow, Tenure
from entityq.runner.committer import Committer
from entityq.runner.deferrals import Deferrals
from entityq.runner.dispatcher import Dispatcher
from entityq.runner.feeder import Feeder
from entityq.runner.intake import ShardIntake
from entityq.runner.lease_keeper import LeaseKeeper
from entityq.runner.listener import Listener
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.passivation import Passivation
from entityq.runner.prefetch import Prefetch
from entityq.runner.reader import Reader
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.runner.resources import Resources
from entityq.runner.shards import Shards
from entityq.runner.state_loader import StateLoader
from entityq.runner.sweeper import Sweeper
from entityq.runner.turn import TurnLimits
from entityq.runner.turn_sender import TurnSender
from entityq.runner.turn_slots import TurnSlots
from entityq.runner.turns import TurnDropped, Turns
from entityq.snowflake import Snowflakes

log = logging.getLogger(__name__)

COMMIT_BATCH = 1_000
COMMIT_BYTES = 8 * 1024 * 1024
DRAIN_DEADLINE = 1.0
PAUSE_AFTER_FAILURE = 1.0


class LifeOver(Exception):
    """Ends the tasks of a life."""


class Life:
    """`run` returns when the life is over: drained, or its session lost (`reason` then says why)."""

    def __init__(self, session: LeaseSession, groups: Sequence[str], resources: Resources) -> None:
        settings = resources.settings
        self.reason = ""
        self._session = session
        self._resources = resources
        # A session's number is leased, so its ids meet nobody else's.
        self._snowflakes = Snowflakes(session.number)
        self._tasks = asyncio.TaskGroup()
        self._over = asyncio.Event()
        self._context = copy_context()
        self._limits = TurnLimits(Limits(settings.max_reply), Limits(settings.max_state))
        self.residents = Residents(settings.max_resident)
        self.deferrals = Deferrals()
        self._prefetch = Prefetch(settings.prefetch)
        self._passivation = Passivation(self.residents, self, ended=self._made_room)
        self._dispatcher = Dispatcher(
            resources.definitions,
            self.residents,
            self.deferrals,
            self._prefetch,
            self,
            max_payload=settings.max_payload,
        )
        consumer = str(session.incarnation).encode()
        self._stream_groups = StreamGroups(resources.redis, consumer)
        self._announcer = Announcer(
            publish_replies=resources.replies.publish,
            acknowledge=self._stream_groups.acknowledge,
            publish_requests=self._publish_requests,
            wake_reader=lambda: self._stream_groups.wake(self._wake_stream),
        )
        self._commits = Batcher[Commit, Committed](
            Committer(session, settings.namespace, session.epochs).flush,
            max_items=COMMIT_BATCH,
            max_size=COMMIT_BYTES,
        )
        self._loader = StateLoader(resources.backlog)
        self.slots = TurnSlots(settings.max_turns)
        self._turns = Turns(
            self._loader,
            sender_of=self._new_sender,
            commit=self._commit,
            applied=self._applied,
            answer=self._answer,
            threads=resources.threads,
            serializer=resources.serializer,
            limits=self._limits,
        )
        self.shards = self._new_shards()
        self._wake_stream = resources.keys.wake_stream(session.incarnation)
        self._reader = Reader(
            StreamReader(open_connection(resources.redis_url), consumer),
            self._stream_groups,
            self.shards.by_stream,
            wake_stream=self._wake_stream,
            deliver=self._dispatcher.entry,
            room=self._prefetch.room,
            prefetch=settings.prefetch,
            block=settings.lease_time * 0.4,
        )
        self._feeder = Feeder(
            resources.backlog,
            self.deferrals,
            self.residents,
            self.shards.by_id,
            resources.definitions,
            deliver=self._dispatcher.row,
            make_room=self._passivation.make_room,
        )
        self._sweeper = Sweeper(
            resources.backlog,
            self.shards.by_id,
            self.deferrals,
            redis_up=self._reader.connected,
            interval=settings.sweep_interval,
        )
        self._listener = Listener(resources.lease_url, settings.schema, settings.namespace, self.shards.by_id)
        self._keeper = LeaseKeeper(
            session,
            resources.facts,
            groups,
            self,
            resources.control,
            termination_time=settings.termination_time,
        )

    def _new_shards(self) -> Shards:
        catching_up = CatchingUp(
            self._resources.backlog,
            room=self._prefetch.room,
            deliver_row=self._dispatcher.row,
            deliver_arrival=self._dispatcher.arrival,
            give_up=lambda owned, entry_ids: self.acknowledge(owned.stream, entry_ids),
        )
        return Shards(
            self,
            incarnation=self._session.incarnation,
            new_shard=self._new_shard,
            groups=self._stream_groups,
            catching_up=catching_up,
            residents=self.residents,
            deferrals=self.deferrals,
            deliver=self._dispatcher.entry,
            acknowledge=self.acknowledge,
            drop=self._empty_mailbox,
            wake_reader=self._wake_reader,
        )

    # ----- the life itself

    async def run(self) -> None:
        try:
            async with self._tasks:
                self.start(self._reader.run(), "reader")
                self.start(self._commits.run(), "committer")
                self.start(self._announcer.run(), "announcer")
                self.start(self._loader.run(), "state loader")
                self.start(self._feeder.run(), "feeder")
                self.start(self._sweeper.run(), "sweeper")
                self.start(self._listener.run(), "listener")
                self.start(self._passivation.run(), "passivation")
                self.start(self._keeper.run(), "lease keeper")
                await self._over.wait()
                raise LifeOver
        except* LifeOver:
            pass

    async def drain(self) -> None:
        """Leave the membership, let running turns end and commit, give up the shards, and end this life."""
        await self._keeper.drain()
        await self._announcer.drain(DRAIN_DEADLINE)
        self._over.set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        # In a context of its own: a turn that ends starts the next one, which must not inherit its variables.
        return self._tasks.create_task(
            work, name=f"entityq {self._session.incarnation} {name}", context=self._context.copy()
        )

    # ----- what the lease keeper calls

    def acquired(self, shard_id: int, epoch: int) -> None:
        self.shards.acquired(shard_id, epoch)

    async def release(self, shard_id: int) -> None:
        await self.shards.release(shard_id)

    def lost(self, reason: str) -> None:
        """The leases are gone: what runs is stopped, and nothing of it can commit."""
        self.reason = reason
        self._over.set()

    # ----- what the dispatcher and the activations call

    def acknowledge(self, stream: bytes, entry_ids: Sequence[bytes]) -> None:
        for entry_id in entry_ids:
            self._announcer.entry(stream, entry_id)

    def refuse(self, request: Request, error: type[EntityQError], text: str) -> None:
        reply = defect_reply(request.request_id, error, text, self._limits.reply)
        self._answer(request, reply)

    def answer_unreadable(self, owned: OwnedShard, row: Row, error: EntityQError) -> None:
        """A stored request that cannot be decoded is answered, so that nobody waits for it."""
        self.start(self._answer_unreadable(owned, row, error), f"answer unreadable {row.request_id}")

    def new_activation(self, definition: EntityDefinition, address: Address, owned: OwnedShard) -> Activation:
        return Activation(definition, address, owned.tenure, self)

    def make_room(self) -> bool:
        return self._passivation.make_room()

    async def take_turn(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        try:
            await self._turns.take(activation, request, message)
        except TurnDropped as dropped:
            log.warning(
                "turn.dropped request=%s entity=%s: %s", request.request_id, activation.address, dropped
            )
            self._drop(activation, request)
        except (LeaseLost, BatcherClosed):
            log.info("turn.lease_lost request=%s entity=%s", request.request_id, activation.address)
        except Exception:
            # Ours, not the handler's. The request stays accepted; it is not hammered.
            log.exception("turn.failed request=%s entity=%s", request.request_id, activation.address)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
            self._drop(activation, request)
        finally:
            self._prefetch.remove()

    def drained(self, activation: Activation) -> None:
        """A turn of the activation has ended."""
        if activation.idle:
            if activation.definition.stateless:
                self.residents.remove(activation)
            else:
                self.residents.became_idle(activation)
        if self.deferrals:
            self._feeder.wake()

    # ----- turns

    def _new_sender(self, request: Request) -> TurnSender:
        return TurnSender(request, self._resources.client, self._waiting)

    @contextmanager
    def _waiting(self) -> Generator[None]:
        with self.slots.lent(), self._prefetch.lent(), self.residents.lent():
            self._made_room()
            yield

    async def _commit(self, commit: Commit) -> Committed:
        return await self._commits.submit(commit, commit.size)

    def _applied(self, commit: Commit, applied: Applied) -> None:
        request = commit.request
        owned = self.shards.by_id.get(request.shard_id)
        if owned is not None:
            owned.intake.answered(request.request_id)
            if applied.sent:
                self._announcer.requests(owned, applied.sent)
            if request.entry_id is not None:
                self._announcer.entry(owned.stream, request.entry_id)
        self._announcer.reply(request.envelope.client, request.request_id, commit.encoded_reply)

    def _answer(self, request: Request, reply: Reply) -> None:
        owned = self.shards.by_id.get(request.shard_id)
        if owned is not None:
            owned.intake.answered(request.request_id)
            if request.entry_id is not None:
                self._announcer.entry(owned.stream, request.entry_id)
        self._announcer.reply(request.envelope.client, request.request_id, reply.encode())

    async def _publish_requests(self, owned: OwnedShard, rows: Sequence[SentRow]) -> None:
        await owned.publisher.publish([(row.request, row.shard_id, row.seq) for row in rows])

    async def _answer_unreadable(self, owned: OwnedShard, row: Row, error: EntityQError) -> None:
        envelope = Envelope(row.request_id, Address("unreadable", "0"), "unreadable", b"", True, 0)
        request = Request(envelope, owned.shard_id, row.seq, None)
        reply = defect_reply(row.request_id, MalformedMessage, error.what, self._limits.reply)
        try:
            await self._commit(Commit(owned.tenure, request, reply, reply.encode()))
        except Exception:
            log.exception("request.unreadable_unanswered request=%s", row.request_id)

    # ----- what must be undone

    def _drop(self, activation: Activation, request: Request) -> None:
        """A turn was not applied: the outbox says what is still to be done, in order."""
        owned = self.shards.by_id.get(request.shard_id)
        self._empty_mailbox(activation)
        self.residents.remove(activation)
        if owned is not None:
            owned.intake.forget(request.request_id)
            owned.must_catch_up()

    def _empty_mailbox(self, activation: Activation) -> None:
        """Requests that have not started leave the runner: the outbox, or the stream, still has them."""
        owned = self.shards.by_id.get(activation.tenure.shard_id)
        for request, _ in activation.mailbox:
            self._prefetch.remove()
            if owned is None:
                continue
            owned.intake.forget(request.request_id)
            if not request.envelope.persisted:
                self.refuse(request, EntityNotAssigned, f"{activation.address} is being restarted")
        activation.mailbox.clear()

    # ----- shards

    def _new_shard(self, tenure: Tenure) -> OwnedShard:
        resources = self._resources
        shard = resources.facts.shard(tenure.shard_id)
        publisher = Publisher(
            resources.streams,
            resources.breaker,
            stream_of=self._stream_of,
            sender=self._snowflakes.new(),
            unpublished=self._unpublished,
            # What an owner before this one committed, and did not publish, must not be overtaken: the first
            # entry is a gap, and whoever gets it reads the outbox first.
            first=2,
        )
        return OwnedShard(shard, tenure, resources.keys.stream(shard), ShardIntake(), publisher)

    def _stream_of(self, shard_id: int) -> bytes:
        return self._resources.keys.stream(self._resources.facts.shard(shard_id))

    def _unpublished(self, shard_ids: Iterable[int]) -> None:
        self.start(self._notify(list(shard_ids)), "notify unpublished")

    async def _notify(self, shard_ids: Sequence[int]) -> None:
        try:
            await self._resources.backlog.notify_unpublished(self._resources.settings.namespace, shard_ids)
        except (PostgresError, PoolTimeout, OSError) as error:
            log.debug("life.not_notified: %s; the sweep finds it", error)

    def _wake_reader(self) -> None:
        self._announcer.shards_changed()

    def _made_room(self) -> None:
        if self.deferrals:
            self._feeder.wake()
