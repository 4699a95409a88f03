"""A runner: one process that is a member of the cluster, from its first connection to its last.

It lives as long as its process; each of its lives (incarnations) as long as one lease session.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence

from psycopg import Error as PostgresError

from entityq.address import Address, entity_hash, shard_number
from entityq.errors import PersistenceError
from entityq.postgres.lease_session import Backend, Claim, LeaseSession
from entityq.postgres.pinned_connection import LeaseLost
from entityq.runner.life import Life
from entityq.runner.resources import Resources

log = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 0.2


class Runner:
    """Serves the shards that the cluster assigns to it.

    Args:
        name: what people call it; not unique.
        groups: the shard groups that it serves.
    """

    def __init__(self, name: str, groups: Sequence[str], resources: Resources) -> None:
        self._name = name
        self._groups = groups
        self._resources = resources
        self._stopping = asyncio.Event()
        self._life: Life | None = None
        self.serving = asyncio.Event()

    @property
    def life(self) -> Life | None:
        """The current incarnation, while there is one."""
        return self._life

    def holds(self, address: Address) -> bool:
        """Whether the shard of an entity is leased by this runner now."""
        facts = self._resources.facts
        group = facts.groups.get(facts.types.get(address.type, ""))
        if group is None or self._life is None:
            return False
        number = shard_number(entity_hash(address.id), group.shards)
        return group.first_shard + number in self._life.shards

    async def run(self) -> None:
        """Returns when `stop` has drained it. Raises UnsafeConfiguration when it may not run here."""
        ghost: Backend | None = None
        while not self._stopping.is_set():
            try:
                session = await self._open_session(ghost)
            except (PersistenceError, LeaseLost, PostgresError) as error:
                log.warning("runner.no_lease_session: %s; trying again", error)
                await self._pause()
                continue
            ghost = session.backend
            try:
                await self._live(session)
            finally:
                await session.close()

    async def stop(self) -> None:
        """Drain: leave the membership, let running turns end and commit, give up the shards one by one."""
        self._stopping.set()
        if self._life is not None:
            await self._life.drain()

    async def _open_session(self, ghost: Backend | None) -> LeaseSession:
        resources = self._resources
        claim = Claim(
            name=self._name,
            host=socket.gethostname(),
            groups=tuple(self._groups),
            types=tuple(resources.definitions),
            weight=resources.settings.weight,
        )
        return await LeaseSession.open(
            resources.lease_url,
            schema=resources.settings.schema,
            facts=resources.facts,
            claim=claim,
            lease_time=resources.settings.lease_time,
            ghost=ghost,
        )

    async def _live(self, session: LeaseSession) -> None:
        if self._stopping.is_set():
            return
        life = Life(session, self._groups, self._resources)
        self._life = life
        self.serving.set()
        log.info("runner.joined incarnation=%s name=%s", session.incarnation, self._name)
        try:
            await life.run()
        finally:
            self._life = None
            self.serving.clear()
        if life.reason:
            log.error(
                "runner.leases_lost incarnation=%s: %s; joining again as a new member",
                session.incarnation,
                life.reason,
            )

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_AFTER_FAILURE):
                await self._stopping.wait()
        except TimeoutError:
            return
