"""Entity ids by the shard that they live in."""

from collections.abc import Iterator

from entityq.address import entity_hash, shard_number
from tests.support.servers import SHARDS


def shard_of(entity_id: str) -> int:
    return shard_number(entity_hash(entity_id), SHARDS)


def neighbours(entity_id: str) -> Iterator[str]:
    """Other ids of the same shard."""
    wanted = shard_of(entity_id)
    number = 0
    while True:
        number += 1
        if shard_of(str(number)) == wanted:
            yield str(number)


def neighbour(entity_id: str) -> str:
    return next(neighbours(entity_id))
