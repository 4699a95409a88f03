"""Moving the rows of shard groups to other shards, batch by batch; what is moved already is passed over.

Nobody else may write these rows: their groups are closed, and nobody holds their shards (see reshard). Both the
lock that keeps a second run out and these statements are of one session, never pooled: a run that was overtaken
has none left to move rows with.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from entityq.address import Shard, entity_hash, shard_number
from entityq.postgres.connect import Connection
from entityq.postgres.queries import load

_SQL = load("reshard.sql")
_READ_MOVES, _LEFT_BEHIND = _SQL["read_moves"], _SQL["left_behind"]
_PAGE_OF_ENTITIES, _MOVE_ENTITIES = _SQL["page_of_entities"], _SQL["move_entities"]
_MOVE_PENDING, _MOVE_OUTBOX = _SQL["move_pending"], _SQL["move_outbox"]
_MOVE_TIMERS = _SQL["move_timers"]

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Move:
    """A group's shards, as they were and as they will be; `wrap` is 2^64 modulo `shards`."""

    group: str
    group_id: int
    old_first: int
    old_shards: int
    first: int
    shards: int
    wrap: int

    @property
    def old_end(self) -> int:
        return self.old_first + self.old_shards

    @property
    def numbers(self) -> range:
        """Those that it has before or after."""
        return range(max(self.old_shards, self.shards))

    @property
    def named(self) -> list[Shard]:
        return [Shard(self.group, number) for number in self.numbers]

    def new_shard(self, entity_id: str) -> int:
        return self.first + shard_number(entity_hash(entity_id), self.shards)


async def read_moves(connection: Connection, namespace: str) -> list[Move]:
    """Of the reshard that is not finished."""
    rows = await (await connection.execute(_READ_MOVES, {"namespace": namespace})).fetchall()
    return [Move(*row) for row in rows]


class RowMover:
    """`moves` are all groups concerned, `targets` the one that each of their entity types goes to."""

    def __init__(
        self,
        connection: Connection,
        moves: Sequence[Move],
        targets: Mapping[str, Move],
        *,
        batch: int,
        progress: Progress,
    ) -> None:
        """`batch`: rows of one transaction. `progress` is told a table and how many of its rows were moved."""
        self._connection = connection
        self._moves = moves
        self._targets = targets
        self._batch = batch
        self._progress = progress

    async def run(self) -> None:
        """Raises psycopg.Error: what was moved stays moved."""
        for move in self._moves:
            await self._entities(move)
            await self._pending(move)
            await self._timers(move)
        await self._outbox()

    async def left_behind(self) -> list[str]:
        """The tables that still have rows in the old shards."""
        rows = await (await self._connection.execute(_LEFT_BEHIND, self._old)).fetchall()
        return sorted(row[0] for row in rows)

    @property
    def _old(self) -> dict[str, list[int]]:
        return {
            "firsts": [move.old_first for move in self._moves],
            "ends": [move.old_end for move in self._moves],
        }

    @property
    def _new(self) -> dict[str, Sequence[object]]:
        return {
            "types": list(self._targets),
            "new_firsts": [move.first for move in self._targets.values()],
            "new_counts": [move.shards for move in self._targets.values()],
            "wraps": [move.wrap for move in self._targets.values()],
        }

    async def _entities(self, move: Move) -> None:
        # The table has no hash of the id, and Postgres cannot make one.
        after = (-1, "", "")
        where = {"first": move.old_first, "end": move.old_end, "page": self._batch}
        while True:
            names = dict(zip(("after_shard", "after_type", "after_id"), after, strict=True))
            page = await (await self._connection.execute(_PAGE_OF_ENTITIES, {**where, **names})).fetchall()
            if not page:
                return
            await self._connection.execute(_MOVE_ENTITIES, _places(page, self._targets))
            self._progress("entity", len(page))
            after = page[-1]

    async def _pending(self, move: Move) -> None:
        after_shard, after_seq = -1, -1
        where = {**self._new, "first": move.old_first, "end": move.old_end, "page": self._batch}
        while True:
            values = {**where, "after_shard": after_shard, "after_seq": after_seq}
            row = await (await self._connection.execute(_MOVE_PENDING, values)).fetchone()
            if row is None:
                return
            after_shard, after_seq, moved = row
            self._progress("pending", moved)

    async def _timers(self, move: Move) -> None:
        after = (-1, "-infinity", -1)
        where = {**self._new, "first": move.old_first, "end": move.old_end, "page": self._batch}
        while True:
            names = dict(zip(("after_shard", "after_due", "after_id"), after, strict=True))
            row = await (await self._connection.execute(_MOVE_TIMERS, {**where, **names})).fetchone()
            if row is None:
                return
            *last, moved = row
            after = tuple(last)
            self._progress("timer", moved)

    async def _outbox(self) -> None:
        after = -(2**63)
        where = {**self._new, **self._old, "page": self._batch}
        while True:
            row = await (await self._connection.execute(_MOVE_OUTBOX, {**where, "after": after})).fetchone()
            if row is None or row[0] is None:
                return
            after, moved = row
            self._progress("outbox", moved)


def _places(rows: Iterable[tuple[int, str, str]], targets: Mapping[str, Move]) -> dict[str, list[object]]:
    """The parameters of move_entities."""
    placed = [
        (shard_id, type_, entity_id, targets[type_].new_shard(entity_id))
        for shard_id, type_, entity_id in rows
        if type_ in targets
    ]
    names = ("shard_ids", "types", "entity_ids", "new_shards")
    return {name: [row[place] for row in placed] for place, name in enumerate(names)}
