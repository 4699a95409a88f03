"""What a runner reads from the outbox: unanswered requests in order, states, sweeps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entityq.address import Address, entity_hash, signed64
from entityq.postgres.connect import Pool, pooled
from entityq.postgres.outbox import notify_unpublished
from entityq.postgres.queries import load
from entityq.stored_state import StoredState

OUTBOX = load("outbox.sql")
TURNS = load("turns.sql")
READ_CANCELLED = load("cancellation.sql")["read_cancelled"]

# Of envelopes, in one read; the one that reaches it is the last.
PAGE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """An unanswered request as the outbox keeps it; times are in seconds.

    `attempts`: turns of it that ended their process. `retries`: those that ended in a defect, for as long as it
    has been `failing`. It is not to be run before `wait` is over, and not at all when it is `cancelled`.
    `suspended`: it waits for a signal, or, when `wait` is over, has waited in vain.
    """

    seq: int
    request_id: int
    address: Address
    envelope: bytes
    attempts: int
    retries: int = 0
    failing: float | None = None
    wait: float = 0.0
    suspended: bool = False
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Unread:
    """A part of a shard's unanswered requests: those with `after < seq <= position`."""

    shard_id: int
    after: int
    position: int


@dataclass(frozen=True, slots=True)
class SweptRow:
    """As little of an unanswered request as a sweep needs; `entity_hash` is signed."""

    seq: int
    request_id: int
    entity_hash: int
    cancelled: bool = False


def is_cut(rows: Iterable[Row]) -> bool:
    """Whether a read of these ended at its bytes: there may be more, of the last row's shard and of those asked
    for behind it."""
    return sum(len(row.envelope) for row in rows) >= PAGE_BYTES


class Backlog:
    """Reads of one runner, each one statement on a pooled connection."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def warm_up(self) -> None:
        """Plans what a takeover reads. Raises psycopg.Error."""
        await self.position()
        await self.read_pending([], 1)
        await self.load_entities([])

    async def position(self) -> int:
        """The last seq drawn in the whole outbox."""
        rows = await self._fetch("read_position", {})
        return int(rows[0][0])

    async def read_pending(self, unread: Sequence[Unread], page: int) -> dict[int, list[Row]]:
        """Per shard id, up to `page` of its unanswered requests, in order; one without any is left out.

        All of them together may be cut off: see `is_cut`. The shards are in the order of `unread`.
        """
        rows = await self._fetch(
            "read_pending",
            {
                "shard_ids": [part.shard_id for part in unread],
                "afters": [part.after for part in unread],
                "positions": [part.position for part in unread],
                "page": page,
                "most_bytes": PAGE_BYTES,
            },
        )
        found: dict[int, list[Row]] = {}
        for shard_id, *row in rows:
            found.setdefault(shard_id, []).append(row_of(tuple(row)))
        return found

    async def read_pending_of_entity(self, shard_id: int, address: Address, page: int) -> list[Row]:
        """An entity's oldest unanswered requests, at most `page`, or cut off: see `is_cut`."""
        rows = await self._fetch(
            "read_pending_of_entity",
            {
                "shard_id": shard_id,
                "entity_hash": signed64(entity_hash(address.id)),
                "type": address.type,
                "entity_id": address.id,
                "page": page,
                "most_bytes": PAGE_BYTES,
            },
        )
        return [row_of(row) for row in rows]

    async def sweep(self, afters: Mapping[int, int], position: int, page: int) -> dict[int, list[SweptRow]]:
        """Per shard id of `afters`, its oldest unanswered requests with `after < seq <= position`."""
        rows = await self._fetch(
            "sweep",
            {
                "shard_ids": list(afters),
                "afters": list(afters.values()),
                "position": position,
                "page": page,
            },
        )
        found: dict[int, list[SweptRow]] = {}
        for shard_id, *row in rows:
            found.setdefault(shard_id, []).append(SweptRow(*row))
        return found

    async def read_cancelled(self, places: Sequence[tuple[int, int]]) -> dict[int, list[Row]]:
        """Of the pending requests at these places (shard id and seq) those that are cancelled, by shard id."""
        async with pooled(self._pool) as connection:
            cursor = await connection.execute(
                READ_CANCELLED,
                {"shard_ids": [shard_id for shard_id, _ in places], "seqs": [seq for _, seq in places]},
            )
            rows = await cursor.fetchall()
        found: dict[int, list[Row]] = {}
        for shard_id, *row in rows:
            found.setdefault(shard_id, []).append(row_of(tuple(row)))
        return found

    async def notify_unpublished(self, namespace: str, shard_ids: Iterable[int]) -> None:
        """Tell the owners of the shards, by NOTIFY, that they have requests that no stream has."""
        async with pooled(self._pool) as connection:
            await notify_unpublished(connection, namespace, shard_ids)

    async def load_entities(
        self, places: Sequence[tuple[int, Address]]
    ) -> dict[tuple[int, Address], StoredState]:
        """The states of those entities (by shard id and address) that have one."""
        async with pooled(self._pool) as connection:
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
            (shard_id, Address(type_, entity_id)): StoredState(version, state, state_version)
            for shard_id, type_, entity_id, version, state, state_version in rows
        }

    async def _fetch(self, name: str, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
        async with pooled(self._pool) as connection:
            cursor = await connection.execute(OUTBOX[name], parameters)
            return await cursor.fetchall()


def row_of(row: tuple[Any, ...]) -> Row:
    """Of the columns of read_pending, from the seq on."""
    seq, request_id, type_, entity_id, envelope, attempts, retries, failing, wait, suspended, *cancelled = row
    address = Address(type_, entity_id)
    return Row(
        seq,
        request_id,
        address,
        envelope,
        attempts,
        retries,
        failing,
        max(0.0, wait or 0.0),
        suspended,
        *cancelled,
    )
