"""Entities that are fed from the outbox: those whose mailbox overflowed, until a read returns everything, and
those in backoff, from the moment when it ends."""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable

from entityq.address import Address, entity_hash, signed64
from entityq.runner.backoffs import Backoffs

# Each is a few hundred bytes. More do not happen before everything is in backoff.
MAX_BACKOFFS = 100_000

# Seconds: for which a signal that was told of is remembered, and after which such an entity is looked at again.
REMEMBER = 60.0
LOOK_AGAIN = 0.1


class Deferrals:
    """Which entities of the runner's shards have requests left in the outbox on purpose.

    Bounded: at `limit` (and at `max_backoffs`) whoever reads streams and outbox waits, until half of them are
    served. A backoff is no part of `limit`: however many entities of a type fail, the others go on.
    """

    def __init__(
        self,
        limit: int = 10_000,
        max_backoffs: int = MAX_BACKOFFS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # When somebody last told of a signal of theirs, in the order of these times.
        self._told: OrderedDict[tuple[int, Address], float] = OrderedDict()
        self._clock = clock
        self._entities: OrderedDict[tuple[int, Address], bool] = OrderedDict()
        self._by_shard: defaultdict[int, dict[Address, int]] = defaultdict(dict)
        self._backoffs = Backoffs()
        self._limit = limit
        self._max_backoffs = max_backoffs
        self._below_limit = asyncio.Event()
        self._below_limit.set()
        # Set when a deferred entity may have room again, or another time is the next one.
        self.room = asyncio.Event()

    def __contains__(self, entity: tuple[int, Address]) -> bool:
        return entity in self._entities or entity in self._backoffs

    def __len__(self) -> int:
        return len(self._entities) + len(self._backoffs)

    async def below_limit(self) -> None:
        await self._below_limit.wait()

    def defer(self, shard_id: int, address: Address) -> None:
        """A request of the entity was left in the outbox."""
        if (shard_id, address) in self._backoffs:
            return
        self._know(shard_id, address)
        self._entities[shard_id, address] = True
        if len(self._entities) >= self._limit:
            self._below_limit.clear()

    def back_off(self, shard_id: int, address: Address, until: float, *, as_of: float | None = None) -> None:
        """The oldest ordered request of the entity is not to be run before then, nor those behind it.

        `as_of`: when the database was asked what says so, None: nobody knows.
        """
        self._know(shard_id, address)
        self._entities.pop((shard_id, address), None)
        if self._told_since((shard_id, address), as_of):
            # What says that it waits may be older than what was told.
            until = min(until, self._clock() + LOOK_AGAIN)
        self._backoffs.begin((shard_id, address), until)
        if len(self._backoffs) >= self._max_backoffs:
            self._below_limit.clear()
        self.room.set()

    def in_backoff(self, shard_id: int, address: Address) -> bool:
        return (shard_id, address) in self._backoffs

    def end_backoffs(self, now: float) -> float | None:
        """Those that are due are fed. Returns when the next one is."""
        for shard_id, address in self._backoffs.pop_due(now):
            self.defer(shard_id, address)
            self.room.set()
            self._removed()
        return self._backoffs.next_due

    def signalled(self, shard_id: int, address: Address) -> None:
        """Somebody tells that its oldest request need not wait for its signal any more.

        That may be heard before a read, or a statement, that says that it has to wait: it is remembered for longer
        than either can take.
        """
        self._told.pop((shard_id, address), None)
        self._told[shard_id, address] = now = self._clock()
        while next(iter(self._told.values())) < now - REMEMBER:
            self._told.popitem(last=False)
        self.end_backoff(shard_id, address)

    def _told_since(self, entity: tuple[int, Address], as_of: float | None) -> bool:
        told = self._told.get(entity)
        return told is not None and told >= (self._clock() - REMEMBER if as_of is None else as_of)

    def end_backoff(self, shard_id: int, address: Address) -> None:
        """Before its time: its oldest request may be another one now."""
        if (shard_id, address) in self._backoffs:
            self._backoffs.end((shard_id, address))
            self._entities[shard_id, address] = True
            self._removed()
            self.room.set()

    def _know(self, shard_id: int, address: Address) -> None:
        if (shard_id, address) not in self:
            self._by_shard[shard_id][address] = signed64(entity_hash(address.id))

    def look_again(self) -> None:
        """A mailbox drained, or an activation ended: whoever is deferred may have room now."""
        if self._entities:
            self.room.set()

    def begin_read(self, shard_id: int, address: Address) -> None:
        """A read of the entity's requests is about to be sent: what is dropped from now on is not in it."""
        if (shard_id, address) in self._entities:
            self._entities[shard_id, address] = False

    def end_read(self, shard_id: int, address: Address, *, everything: bool) -> bool:
        """The read came back; `everything` when all that it could return was admitted.

        Returns whether the entity is served from the stream again.
        """
        if (shard_id, address) in self._backoffs:
            return False
        if (shard_id, address) not in self._entities:
            return True
        if everything and not self._entities[shard_id, address]:
            del self._entities[shard_id, address], self._by_shard[shard_id][address]
            self._removed()
            return True
        self._entities[shard_id, address] = True
        return False

    def oldest(self, at_most: int) -> list[tuple[int, Address]]:
        """The entities that have waited longest."""
        return [entity for entity, _ in zip(self._entities, range(at_most), strict=False)]

    def postpone(self, shard_id: int, address: Address) -> None:
        """Ask the others first: there is no room for this one now."""
        if (shard_id, address) in self._entities:
            self._entities.move_to_end((shard_id, address))

    def hashes(self, shard_id: int) -> set[int]:
        """The signed hashes of the shard's deferred entity ids, as the outbox has them."""
        return set(self._by_shard[shard_id].values())

    def leave(self, shard_id: int, address: Address) -> None:
        """What the entity has in the outbox is for another runner."""
        if (shard_id, address) in self:
            self._entities.pop((shard_id, address), None)
            self._backoffs.end((shard_id, address))
            del self._by_shard[shard_id][address]
            self._removed()

    def drop_shard(self, shard_id: int) -> None:
        for address in self._by_shard.pop(shard_id, {}):
            self._entities.pop((shard_id, address), None)
            self._backoffs.end((shard_id, address))
        self._removed()

    def _removed(self) -> None:
        if len(self._entities) <= self._limit // 2 and len(self._backoffs) < self._max_backoffs:
            self._below_limit.set()
