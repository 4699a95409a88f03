"""One incarnation of a runner: everything that lives and dies with its lease session.

It puts the parts together; what they do is in a file of its own each. When the session is lost the whole
life ends, and the runner starts another one that has nothing of it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager

from entityq.batching import Batcher
from entityq.codec import Limits
from entityq.outage import Outage
from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.transaction import Fence
from entityq.redis.connect import open_connection
from entityq.redis.consumer import StreamGroups, StreamReader
from entityq.runner.activations import Activations
from entityq.runner.announcer import Announcer
from entityq.runner.answers import Answers
from entityq.runner.attempt_record import AttemptRecord
from entityq.runner.broadcasts import Broadcasts
from entityq.runner.cancels import Cancels
from entityq.runner.catching_up import CatchingUp
from entityq.runner.chunk_writer import StreamPorts
from entityq.runner.chunks import Chunks, NewChunks
from entityq.runner.commit import Commit, Committed, Tenure
from entityq.runner.committer import Committer
from entityq.runner.declarations import Declarations
from entityq.runner.deferrals import Deferrals
from entityq.runner.dispatcher import Dispatcher
from entityq.runner.feeder import Feeder
from entityq.runner.health import Health
from entityq.runner.heart import Heart
from entityq.runner.lease_keeper import LeaseKeeper
from entityq.runner.limiting import Limiting
from entityq.runner.listener import Listener
from entityq.runner.loop_watch import LoopWatch
from entityq.runner.news import News
from entityq.runner.passivation import Passivation
from entityq.runner.ping_check import PingAnswers
from entityq.runner.places import Places
from entityq.runner.prefetch import Prefetch
from entityq.runner.purger import Purger
from entityq.runner.reader import Reader
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.runner.resources import Resources
from entityq.runner.setbacks import Setback, Setbacks
from entityq.runner.shard_table import ShardTable
from entityq.runner.shards import Shards
from entityq.runner.signals import RunnerSignals
from entityq.runner.singletons import SingletonRuns
from entityq.runner.state_loader import StateLoader
from entityq.runner.streams import Streams
from entityq.runner.suspects import Suspects
from entityq.runner.sweeper import Sweeper
from entityq.runner.tasks import Tasks
from entityq.runner.timers import Timers
from entityq.runner.transactions import Transactions, TurnTransaction
from entityq.runner.turn import TurnLimits
from entityq.runner.turn_publishers import TurnPublishers
from entityq.runner.turn_sender import TurnSender
from entityq.runner.turn_slots import TurnSlots
from entityq.runner.turns import Turns
from entityq.snowflake import Snowflakes

COMMIT_BATCH = 1_000
COMMIT_BYTES = 8 * 1024 * 1024
DRAIN_DEADLINE = 1.0
TURNS_DEADLINE = 1.0


class LifeOver(Exception):
    """Ends the tasks of a life."""


class Life:
    """`run` returns when the life is over: drained, or its session lost (`reason` then says why)."""

    def __init__(
        self, session: LeaseSession, heart: Heart, groups: Sequence[str], resources: Resources
    ) -> None:
        """`heart`: beating already, for this session."""
        settings = resources.settings
        self.reason = ""
        self._session = session
        self._heart = heart
        self._news = News(heart, resources.control)
        self._resources = resources
        self._over = asyncio.Event()
        self._tasks = Tasks(session.incarnation)
        self.shards = ShardTable()
        self.residents = Residents(settings.max_resident)
        self.deferrals = Deferrals()
        self.prefetch = Prefetch(settings.prefetch)
        self._slots = TurnSlots(settings.max_turns)
        self._limits = TurnLimits(Limits(settings.max_reply), Limits(settings.max_state))
        self._consumer = str(session.incarnation).encode()
        self._stream_groups = StreamGroups(resources.redis, self._consumer)
        self._wake_stream = resources.keys.wake_stream(session.incarnation)
        self._publishers = TurnPublishers(resources, Snowflakes(session.number), self._tasks)
        self._commits = Batcher[Commit, Committed](
            Committer(session, settings.namespace, session.epochs).flush,
            max_items=COMMIT_BATCH,
            max_size=COMMIT_BYTES,
        )
        self._setbacks = Batcher[Setback, bool](
            Setbacks(session, session.epochs).flush, max_items=COMMIT_BATCH, max_size=COMMIT_BATCH
        )
        self._signals = RunnerSignals(
            session,
            resources.signals,
            resources.current_facts,
            self.shards,
            self.deferrals,
            timer_in=self._timer_in,
        )
        self._announcer = Announcer(
            publish_replies=resources.replies.publish,
            acknowledge=self._stream_groups.acknowledge,
            publish_requests=self._publishers.publish,
            wake_reader=lambda: self._stream_groups.wake(self._wake_stream),
        )
        self._answers = Answers(
            self._announcer,
            self.shards,
            self._tasks,
            self._commit,
            self._limits.reply,
            may_answer=self._may_answer,
        )
        self._stored_chunks = Chunks(session, session.epochs)
        self._chunks = Batcher[NewChunks, bool](
            self._stored_chunks.flush, max_items=COMMIT_BATCH, max_size=COMMIT_BYTES
        )
        self._states = StateLoader(resources.backlog)
        fence = Fence(settings.schema, settings.namespace, session.incarnation)
        self._transactions = Transactions(
            resources.new_turn_connections(fence.name),
            fence,
            epochs=session.epochs,
            execute=session.execute,
        )
        self._activations = self._new_activations()
        self._passivation = Passivation(self.residents, self._tasks, ended=self.deferrals.look_again)
        self._dispatcher = Dispatcher(
            resources.definitions,
            self.residents,
            self.deferrals,
            self.prefetch,
            activations=self._activations,
            answers=self._answers,
            make_room=self._passivation.make_room,
            shard_id_of=resources.current_facts.shard_id,
            max_payload=settings.max_payload,
        )
        # Each of them would tell of it for each shard.
        self._streams_outage = Outage(
            "redis.read_failed", "redis.read_works_again", "reading from the outbox until it works"
        )
        self._reader = self._new_reader()
        self._catching_up = self._new_catching_up()
        self.timers = Timers(
            session,
            self.shards,
            room=self.deferrals.below_limit,
            reserve=self.prefetch.reserved,
            deliver=self._dispatcher.row,
        )
        self._cancels = Cancels(
            resources.backlog,
            self.shards,
            self.residents,
            self.deferrals,
            activations=self._activations,
            answers=self._answers,
            deliver=self._dispatcher.row,
        )
        self._owner = self._new_owner()
        self._declarations = Declarations(resources)
        self._singletons = SingletonRuns(resources, self._tasks)
        self._keeper = LeaseKeeper(
            session,
            resources.current_facts,
            groups,
            self,
            resources.control,
            termination_time=settings.termination_time,
        )

    def _new_activations(self) -> Activations:
        resources = self._resources
        places = Places(self._slots, self.prefetch, self.residents, self.deferrals)

        def lent(request: Request) -> AbstractContextManager[None]:
            return places.lent(resources.definitions[request.envelope.address.type].mailbox_capacity)

        def new_sender(request: Request) -> TurnSender:
            return TurnSender(request, resources.client, lambda: lent(request))

        def new_transaction(request: Request, tenure: Tenure) -> TurnTransaction:
            return self._transactions.of_turn(request, tenure, lambda: lent(request))

        ports = StreamPorts(
            store=lambda chunks: self._chunks.submit(chunks, chunks.size),
            progress=self._stored_chunks.progress,
            tell=self._answers.chunks,
            waiting=lent,
        )
        self._streams = Streams(ports, self._limits.reply)
        turns = Turns(
            self._states,
            sender_of=new_sender,
            transaction_of=new_transaction,
            signals=self._signals,
            streams=self._streams,
            commit=self._commit,
            set_back=self._set_back,
            applied=self._answers.committed,
            answer=self._answers.volatile,
            threads=resources.threads,
            serializer=resources.serializer,
            limits=self._limits,
        )
        self._limiting = Limiting(
            self._session,
            resources,
            self._tasks,
            self.deferrals,
            places,
            members=lambda: self._keeper.members,
            overflow=lambda: self._activations,
            timer_in=self._timer_in,
        )
        return Activations(
            turns,
            self._answers,
            self.shards,
            self._tasks,
            facts=resources.current_facts,
            slots=self._slots,
            prefetch=self.prefetch,
            residents=self.residents,
            deferrals=self.deferrals,
            suspects=Suspects(self._session, self._session.epochs, waiting=lent),
            limits=self._limiting.limits,
            put_off=self._limiting.put_off,
        )

    def _new_reader(self) -> Reader:
        settings = self._resources.settings
        return Reader(
            StreamReader(open_connection(self._resources.redis_url), self._consumer),
            self._stream_groups,
            self.shards,
            wake_stream=self._wake_stream,
            outage=self._streams_outage,
            deliver=self._dispatcher.entry,
            room=self._room,
            admit=self._resources.admit,
            prefetch=settings.prefetch,
            block=settings.lease_time * 0.4,
        )

    def _new_catching_up(self) -> CatchingUp:
        return CatchingUp(
            self._resources.backlog,
            current=self.shards.owns,
            room=self.deferrals.below_limit,
            reserve=self.prefetch.reserved,
            deliver_row=self._dispatcher.row,
            deliver_arrival=self._dispatcher.arrival,
            give_up=self._answers.acknowledge,
        )

    def _new_owner(self) -> Shards:
        resources = self._resources
        return Shards(
            self.shards,
            self._tasks,
            incarnation=self._session.incarnation,
            facts=resources.current_facts,
            keys=resources.keys,
            new_publisher=self._publishers.new,
            groups=self._stream_groups,
            outage=self._streams_outage,
            catching_up=self._catching_up,
            residents=self.residents,
            deferrals=self.deferrals,
            deliver=self._dispatcher.entry,
            acknowledge=self._answers.acknowledge,
            empty_mailbox=self._activations.empty_mailbox,
            changed=self._announcer.shards_changed,
        )

    def _new_health(self) -> Health:
        resources, me = self._resources, self._session.incarnation
        check = resources.new_health_check(resources.control, me)
        return Health(me, check, resources.health, lambda: self._keeper.members)

    def _new_broadcasts(self) -> Broadcasts:
        resources = self._resources
        return Broadcasts(
            self._session.incarnation,
            resources.control,
            resources.definitions,
            residents=self.residents,
            shards=self.shards,
            prefetch=self.prefetch,
            announce=self._announcer.reply,
            max_payload=resources.settings.max_payload,
        )

    async def _room(self) -> None:
        """Returns when more may be read."""
        await self.prefetch.room()
        await self.deferrals.below_limit()

    async def _commit(self, commit: Commit) -> Committed:
        return await self._commits.submit(commit, commit.size)

    async def _set_back(self, setback: Setback) -> bool:
        recorded = await self._setbacks.submit(setback, 1)
        if recorded and setback.parked:
            self._timer_in(setback.delay)
        return recorded

    def _timer_in(self, seconds: float) -> None:
        self.timers.due_in(seconds)

    # ----- the life itself

    async def run(self) -> None:
        resources, start, me = self._resources, self._tasks.start, self._session.incarnation
        settings = resources.settings
        feeder = Feeder(
            resources.backlog,
            self.deferrals,
            self.residents,
            self.shards,
            resources.definitions,
            deliver=self._dispatcher.row,
            make_room=self._passivation.make_room,
        )
        sweeper = Sweeper(
            resources.backlog,
            self.shards,
            self.deferrals,
            redis_up=self._reader.connected,
            interval=settings.sweep_interval,
            cancelled=self._cancels.look_at,
        )
        listener = Listener(
            self._session,
            settings.namespace,
            self.shards,
            resources.current_facts,
            timer_set=self.timers.heard,
            cancelled=self._cancels.heard,
            signalled=self._signals.heard,
            chunk_acknowledged=self._streams.heard,
        )
        # Before the first shard is taken.
        attempts = AttemptRecord(self._heart.execute, resources, self._consumer, me)
        self._heart.listen(self, self._session, LoopWatch(attempts.write, limit=resources.loop_limit).look)
        try:
            async with self._tasks:
                start(listener.run(), "listener")
                start(self._news.tell_of_ends(), "death notices")
                start(self._news.hear_of_joins(), "joins of others")
                start(self._reader.run(), "reader")
                start(self._commits.run(), "committer")
                start(self._setbacks.run(), "setbacks")
                start(self._limiting.run(), "limits")
                start(self._signals.run(), "suspensions")
                start(self._chunks.run(), "chunks")
                start(self.timers.run(), "timers")
                start(self._announcer.run(), "announcer")
                start(self._states.run(), "state loader")
                start(feeder.run(), "feeder")
                start(sweeper.run(), "sweeper")
                start(self._cancels.run(), "cancels")
                start(self._owner.run(), "joins")
                start(self._catching_up.run(), "catching up")
                start(self._declarations.run(), "declarations")
                start(self._passivation.run(), "passivation")
                start(self._keeper.run(), "lease keeper")
                start(PingAnswers(resources.control, me).run(), "ping answers")
                start(self._new_broadcasts().run(), "broadcasts")
                start(self._new_health().run(), "health")
                start(Purger(resources.retention, self.shards, resources.current_facts).run(), "purger")
                try:
                    await self._over.wait()
                finally:
                    # A turn that ends with its life does not start the next one.
                    self._slots.close()
                raise LifeOver
        except* LifeOver:
            pass
        finally:
            self._transactions.end()
            await self._tasks.end_turns(TURNS_DEADLINE)
            await self._transactions.ended(TURNS_DEADLINE)

    async def drain(self) -> None:
        """Leave the membership, let running turns end and commit, give up the shards, and end this life."""
        await self._keeper.drain()
        await self._announcer.drain(DRAIN_DEADLINE)
        self._over.set()

    def _may_answer(self) -> bool:
        """Whether no other runner can have the shards: a reply that no commit has checked may be sent."""
        return self._heart.fresh() and not self._session.lost.is_set()

    # ----- what the heart calls

    def membership_changed(self) -> None:
        self._keeper.nudge()

    def runner_ended(self, incarnation: int) -> None:
        self._keeper.nudge()
        self._news.ended(incarnation)

    def not_a_member(self, reason: str) -> None:
        self._session.end(reason)

    # ----- what the lease keeper calls

    def acquired(self, shard_id: int, epoch: int) -> None:
        self._owner.acquired(shard_id, epoch)
        self.timers.look()
        self._declarations.acquired(shard_id)
        self._singletons.acquired(shard_id, epoch)

    async def release(self, shard_id: int) -> None:
        async with self._singletons.ending(shard_id):
            await self._owner.release(shard_id)

    def lost(self, reason: str) -> None:
        """The leases are gone: what runs is stopped, and nothing of it can commit."""
        self.reason = reason
        self._over.set()
