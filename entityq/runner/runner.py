"""A runner: one process that is a member of the cluster, from its first connection to its last.

It lives as long as its process; each of its lives (incarnations) as long as one lease session.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from psycopg import Error as PostgresError

from entityq.address import Address
from entityq.errors import PersistenceError, UnsafeConfiguration
from entityq.postgres.facts import Facts, unregistered
from entityq.postgres.lease_session import Backend, Claim, LeaseSession
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner.committer import Committer
from entityq.runner.heart import Heart, open_heart
from entityq.runner.life import Life
from entityq.runner.resources import Resources
from entityq.runner.tasks import end

log = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 0.2
WARM_UP_DEADLINE = 1.0


class Runner:
    """Serves the shards that the cluster assigns to it.

    Args:
        name: what people call it; not unique.
        groups: the shard groups that it serves; empty: all of the cluster's.
        place: as in Claim.
    """

    def __init__(self, name: str, groups: Sequence[str], resources: Resources, place: str) -> None:
        self._name = name
        self._place = place
        self._groups = groups
        self._resources = resources
        self._stopping = asyncio.Event()
        self._life: Life | None = None
        self._ghost: Backend | None = None
        self._broken: BaseException | None = None
        self._draining: asyncio.Task[None] | None = None
        self.serving = asyncio.Event()

    @property
    def life(self) -> Life | None:
        """The current incarnation, while there is one."""
        return self._life

    def holds(self, address: Address) -> bool:
        """Whether the shard of an entity is leased by this runner now."""
        shard_id = self._resources.current_facts.now.shard_id(address)
        return shard_id is not None and self._life is not None and shard_id in self._life.shards

    async def run(self) -> None:
        """Returns when `stop` has drained it. Raises UnsafeConfiguration when it may not run here."""
        async with self._beside():
            while not self._stopping.is_set():
                facts = self._current_facts()
                groups = tuple(self._groups or facts.groups)
                async with AsyncExitStack() as stack:
                    opened = await self._open(stack, facts, groups)
                    if opened is not None:
                        await self._live(*opened, groups)
                if opened is None:
                    await self._pause()
        if self._broken is not None:
            raise self._broken

    async def stop(self) -> None:
        """Drain: leave the membership, let running turns end and commit, give up the shards one by one."""
        self._stopping.set()
        if self._life is not None:
            await self._life.drain()

    @asynccontextmanager
    async def _beside(self) -> AsyncGenerator[None, None]:
        """What outlives an incarnation. Should it fail, the runner hands over what it has, and ends."""
        resources = self._resources
        tasks = (
            asyncio.create_task(resources.control.run(), name="entityq control channel"),
            asyncio.create_task(resources.current_facts.run(), name="entityq facts"),
        )
        for task in tasks:
            task.add_done_callback(self._ended_beside)
        try:
            yield
        finally:
            for task in tasks:
                task.remove_done_callback(self._ended_beside)
                await end(task)

    def _ended_beside(self, task: asyncio.Task[None]) -> None:
        name = task.get_name()
        error = None if task.cancelled() else task.exception()
        log.error("runner.broken name=%s: its task %r ended; draining", self._name, name, exc_info=error)
        self._broken = error or RuntimeError(f"the task {name!r} of the runner {self._name} ended")
        self._draining = asyncio.create_task(self.stop(), name="entityq drain of a broken runner")

    def _current_facts(self) -> Facts:
        """Raises UnsafeConfiguration where a reshard has moved one of the code's types to another group."""
        facts = self._resources.current_facts.now
        definitions = self._resources.definitions.values()
        unregistered(facts, {definition.type: definition.shard_group for definition in definitions})
        return facts

    async def _open(
        self, stack: AsyncExitStack, facts: Facts, groups: Sequence[str]
    ) -> tuple[LeaseSession, Heart] | None:
        """The heart first: who cannot be heard would be evicted, so must not join."""
        settings = self._resources.settings
        heart = open_heart(
            self._resources.lease_url, schema=settings.schema, facts=facts, lease_time=settings.lease_time
        )
        try:
            beating = await stack.enter_async_context(heart)
            await self._warm_up()
            session = await self._open_session(facts, groups)
            self._ghost = session.backend
            stack.push_async_callback(session.close)
            await beating.begin(session.incarnation, session.backend)
            await Committer(session, settings.namespace, session.epochs).warm_up()
        except (PersistenceError, LeaseLost, PostgresError) as error:
            log.warning("runner.no_lease_session: %s; trying again", error)
            return None
        return session, beating

    async def _warm_up(self) -> None:
        """Before joining: from then on shards wait for this runner, and soon requests for its statements."""
        warming = asyncio.create_task(self._resources.backlog.warm_up(), name="entityq warm-up")
        await asyncio.wait([warming], timeout=WARM_UP_DEADLINE)
        await end(warming)
        if warming.cancelled() or warming.exception() is not None:
            log.warning("runner.cold: Postgres did not answer at once; the first turns will wait for it")

    async def _open_session(self, facts: Facts, groups: Sequence[str]) -> LeaseSession:
        resources = self._resources
        claim = Claim(
            name=self._name,
            place=self._place,
            host=socket.gethostname(),
            groups=groups,
            types=tuple(resources.definitions),
            weight=resources.settings.weight,
        )
        return await LeaseSession.open(
            resources.lease_url,
            schema=resources.settings.schema,
            facts=facts,
            claim=claim,
            lease_time=resources.settings.lease_time,
            ghost=self._ghost,
        )

    async def _live(self, session: LeaseSession, heart: Heart, groups: Sequence[str]) -> None:
        if self._stopping.is_set():
            return
        life = Life(session, heart, groups, self._resources)
        self._life = life
        watch = asyncio.create_task(self._end_with_types(life), name="entityq types that moved")
        self.serving.set()
        log.info("runner.joined incarnation=%s name=%s", session.incarnation, self._name)
        try:
            await life.run()
        finally:
            self._life = None
            self.serving.clear()
            await end(watch)
        if life.reason:
            log.error(
                "leases.lost incarnation=%s: %s; joining again as a new member",
                session.incarnation,
                life.reason,
            )

    async def _end_with_types(self, life: Life) -> None:
        """A reshard that moves one of the code's types away ends the life, and `run` says why."""
        while True:
            try:
                self._current_facts()
            except UnsafeConfiguration:
                break
            await self._resources.current_facts.change()
        log.info("runner.type_moved: giving up the shards")
        await life.drain()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_AFTER_FAILURE):
                await self._stopping.wait()
        except TimeoutError:
            return
