"""The facts of a cluster as one process knows them now: only `entityq reshard` changes what was once true."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from psycopg import Error

from entityq.address import Address, Shard
from entityq.errors import EntityQError
from entityq.outage import Outage
from entityq.postgres.facts import Facts
from entityq.postgres.session import ConnectionLost

_log = logging.getLogger(__name__)

# Seconds between two reads, however often somebody asks, and after one that failed.
PAUSE = 0.2
RETRY = 1.0


class CurrentFacts:
    """`now` is what was read last. `run` reads again when somebody asks, and every so often."""

    def __init__(
        self, facts: Facts, load: Callable[[], Awaitable[Facts]], *, every: float | None = None
    ) -> None:
        """`every`: seconds between two reads for which nobody has asked; None: never."""
        self.now = facts
        self._load = load
        self._every = every
        self._asked = asyncio.Event()
        self._changed = asyncio.Event()
        self._outage = Outage("facts.unread", "facts.read_again", "going on with those that are known")

    def shard(self, shard_id: int) -> Shard | None:
        """None, and the facts are read again, for an id that is not known, or no longer."""
        try:
            return self.now.shard(shard_id)
        except KeyError:
            self.outdated()
            return None

    def shard_id(self, address: Address) -> int | None:
        """Where an entity lives now; None for a type that the cluster does not have."""
        return self.now.shard_id(address)

    def outdated(self) -> None:
        """Something does not fit them: they are read again soon."""
        self._asked.set()

    async def change(self) -> None:
        """Returns when `now` has become another."""
        await self._changed.wait()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._every):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            try:
                facts = await self._load()
            except (ConnectionLost, EntityQError, Error, OSError) as error:
                self._outage.failed(error)
                await asyncio.sleep(RETRY)
                self._asked.set()
            else:
                self._outage.worked()
                self._learn(facts)
                await asyncio.sleep(PAUSE)

    def _learn(self, facts: Facts) -> None:
        if facts == self.now:
            return
        if facts.groups != self.now.groups:
            _log.info("facts.changed namespace=%s", facts.namespace)
        self.now = facts
        self._changed.set()
        self._changed = asyncio.Event()
