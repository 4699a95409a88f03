"""What a runner reads from the outbox: unanswered requests in order, states, sweeps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg_pool import AsyncConnectionPool

from entityq.address import Address, entity_hash, signed64
from entityq.postgres.connect import Connection
from entityq.postgres.outbox import notify_unpublished
from entityq.postgres.queries import load
from entityq.stored_state import StoredState

OUTBOX = load("outbox.sql")
TURNS = load("turns.sql")


@dataclass(frozen=True, slots=True)
class Row:
    """An unanswered request as the outbox keeps it."""

    seq: int
    request_id: int
    envelope: bytes


class Backlog:
    """Reads of one runner, each one statement on a pooled connection."""

    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool

    async def position(self) -> int:
        """The last seq drawn in the whole outbox."""
        rows = await self._fetch("read_position", {})
        return int(rows[0][0])

    async def read_pending(self, shard_id: int, after: int, position: int, page: int) -> list[Row]:
        """One page of a shard's unanswered requests with `after < seq <= position`, in order."""
        rows = await self._fetch(
            "read_pending", {"shard_id": shard_id, "after": after, "position": position, "page": page}
        )
        return [Row(*row) for row in rows]

    async def read_pending_of_entity(self, shard_id: int, address: Address, page: int) -> list[Row]:
        """An entity's oldest unanswered requests, at most `page`."""
        rows = await self._fetch(
            "read_pending_of_entity",
            {
                "shard_id": shard_id,
                "entity_hash": signed64(entity_hash(address.id)),
                "type": address.type,
                "entity_id": address.id,
                "page": page,
            },
        )
        return [Row(*row) for row in rows]

    async def sweep(
        self, shard_ids: Sequence[int], position: int, page: int
    ) -> dict[int, list[tuple[int, int]]]:
        """The oldest unanswered requests per shard with `seq <= position`: (request id, entity hash)."""
        rows = await self._fetch("sweep", {"shard_ids": list(shard_ids), "position": position, "page": page})
        found: dict[int, list[tuple[int, int]]] = {}
        for shard_id, request_id, hash_ in rows:
            found.setdefault(shard_id, []).append((request_id, hash_))
        return found

    async def notify_unpublished(self, namespace: str, shard_ids: Iterable[int]) -> None:
        """Tell the owners of the shards, by NOTIFY, that they have requests that no stream has."""
        async with self._pool.connection() as connection:
            await notify_unpublished(connection, namespace, shard_ids)

    async def load_entities(
        self, places: Sequence[tuple[int, Address]]
    ) -> dict[tuple[int, Address], StoredState]:
        """The states of those entities (by shard id and address) that have one."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                TURNS["load_entities"],
                {
                    "shard_ids": [shard_id for shard_id, _ in places],
                    "types": [address.type for _, address in places],
                    "entity_ids": [address.id for _, address in places],
                },
            )
            rows = await cursor.fetchall()
        return {
            (shard_id, Address(type_, entity_id)): StoredState(version, state)
            for shard_id, type_, entity_id, version, state in rows
        }

    async def _fetch(self, name: str, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(OUTBOX[name], parameters)
            return await cursor.fetchall()
