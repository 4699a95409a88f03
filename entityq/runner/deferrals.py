"""Entities whose mailbox overflowed: until a read returns everything, they are fed from the outbox."""

import asyncio
from collections import OrderedDict, defaultdict

from entityq.address import Address, entity_hash, signed64


class Deferrals:
    """Which entities of the runner's shards have requests left in the outbox on purpose.

    Bounded: at `limit` whoever reads streams and outbox waits, until half of them are served.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._entities: OrderedDict[tuple[int, Address], bool] = OrderedDict()
        self._by_shard: defaultdict[int, dict[Address, int]] = defaultdict(dict)
        self._limit = limit
        self._below_limit = asyncio.Event()
        self._below_limit.set()
        # Set when a deferred entity may have room again.
        self.room = asyncio.Event()

    def __contains__(self, entity: tuple[int, Address]) -> bool:
        return entity in self._entities

    def __len__(self) -> int:
        return len(self._entities)

    async def below_limit(self) -> None:
        await self._below_limit.wait()

    def defer(self, shard_id: int, address: Address) -> None:
        """A request of the entity was left in the outbox."""
        if (shard_id, address) not in self._entities:
            self._by_shard[shard_id][address] = signed64(entity_hash(address.id))
        self._entities[shard_id, address] = True
        if len(self._entities) >= self._limit:
            self._below_limit.clear()

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
        if self._entities.pop((shard_id, address), None) is not None:
            del self._by_shard[shard_id][address]
            self._removed()

    def drop_shard(self, shard_id: int) -> None:
        for address in self._by_shard.pop(shard_id, {}):
            del self._entities[shard_id, address]
        self._removed()

    def _removed(self) -> None:
        if len(self._entities) <= self._limit // 2:
            self._below_limit.set()
