"""Which live runner should own which shard: a pure function that every runner computes alike.

Weighted rendezvous hashing with bounded loads: each shard ranks the runners by a hash of (runner, shard), a
runner keeps the shards that rank highest for it up to its quota, and those it turns away ask the next one.
Both sides rank by the same hash, so the result is the one stable matching: it depends neither on the order of
the input nor on who is assigned first, and a runner that comes or goes moves few shards.

The computation is advice, the locks decide. But two versions that compute differently would pass shards to
and fro: changing the hash or the quota is a change of protocol.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from struct import unpack

# A runner's quota as a multiple of its fair share. Room above 1: fewer moves when the membership changes.
ROOM = 1.1
# The same for the runners that know more of the group's types than others: they serve what others cannot, but
# the first runner of a new release must not be handed the whole group.
ROOM_FOR_KNOWING = 2.0

_SHARDS_PER_HASH = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live runner that serves the group; `known_types`: how many of the group's types it knows.

    `place`: who follows another one in its place gets its shards. Empty: it follows nobody.
    """

    incarnation: int
    weight: float
    known_types: int = 0
    place: str = ""

    @property
    def hashed(self) -> bytes:
        """What stands for it in the hash."""
        return (self.place or str(self.incarnation)).encode()


def assign(shards: Sequence[int], candidates: Sequence[Candidate]) -> dict[int, int]:
    """The incarnation that should own each shard id of one group; empty when there is no candidate."""
    if not candidates:
        return {}
    order = sorted(candidates, key=lambda candidate: candidate.incarnation)
    most = max(candidate.known_types for candidate in order)
    knowing = [candidate.known_types == most for candidate in order]
    quotas = _quotas(len(shards), order, knowing)
    scores = [_scores(candidate, shards) for candidate in order]
    choices = {shard: _choices(index, scores, knowing) for index, shard in enumerate(shards)}
    kept: list[list[tuple[float, int]]] = [[] for _ in order]
    for shard in shards:
        asking = shard
        while True:
            score, place = choices[asking].pop()
            if len(kept[place]) < quotas[place]:
                heapq.heappush(kept[place], (score, asking))
                break
            _, asking = heapq.heappushpop(kept[place], (score, asking))
    return {shard: order[place].incarnation for place, held in enumerate(kept) for _, shard in held}


def _quotas(count: int, candidates: Sequence[Candidate], knowing: Sequence[bool]) -> list[int]:
    total = sum(candidate.weight for candidate in candidates)
    mixed = not all(knowing)
    rooms = [ROOM_FOR_KNOWING if mixed and knows else ROOM for knows in knowing]
    # Rounded first: 1.1 * 100 / 10 is a little above 11.
    return [
        math.ceil(round(room * count * candidate.weight / total, 6))
        for candidate, room in zip(candidates, rooms, strict=True)
    ]


def _choices(
    index: int, scores: Sequence[Sequence[float]], knowing: Sequence[bool]
) -> list[tuple[float, int]]:
    """A shard's candidates as (score, place), the best one last. Those that know more types come first."""
    ranked = sorted((knowing[place], score[index], place) for place, score in enumerate(scores))
    return [(score, place) for _, score, place in ranked]


def _scores(candidate: Candidate, shards: Sequence[int]) -> list[float]:
    """Highest with a chance in proportion to the weight (weighted rendezvous hashing)."""
    hashes: dict[int, tuple[int, ...]] = {}
    weight, log = candidate.weight, math.log
    scores: list[float] = []
    for shard in shards:
        block, offset = divmod(shard, _SHARDS_PER_HASH)
        if block not in hashes:
            digest = blake2b(b"%b/%d" % (candidate.hashed, block), digest_size=64).digest()
            hashes[block] = unpack(">8Q", digest)
        # + 0.5: strictly between 0 and 1, where the logarithm is finite and not 0.
        scores.append(-weight / log(((hashes[block][offset] >> 12) + 0.5) / 2.0**52))
    return scores
