"""Chunks of running turns, stored in one statement for all that wait, on the session that holds the leases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import Error as PostgresError

from entityq.chunk import Chunk
from entityq.postgres.queries import load
from entityq.runner.commit import Tenure
from entityq.runner.committer import LeaseStatements
from entityq.runner.request import Request

_SQL = load("chunks.sql")
STORE_CHUNKS, READ_PROGRESS = _SQL["store_chunks"], _SQL["read_progress"]


@dataclass(frozen=True, slots=True, eq=False)
class NewChunks:
    """Of one turn, in order."""

    tenure: Tenure
    request: Request
    chunks: Sequence[Chunk]

    @property
    def size(self) -> int:
        """Bytes, about."""
        return sum(len(chunk.value) + 50 for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Progress:
    """`last`: the last chunk that is stored, and `acknowledged` the number of the last one that a caller has had."""

    last: Chunk | None = None
    acknowledged: int = 0


class Chunks:
    """`epochs` are the leases held right now, by shard id."""

    def __init__(self, session: LeaseStatements, epochs: Mapping[int, int]) -> None:
        self._session = session
        self._epochs = epochs

    async def flush(self, batch: Sequence[NewChunks]) -> list[bool | BaseException]:
        """Whether those of each are stored: not where the request is answered, or the lease is gone.

        Raises LeaseLost when the session is gone.
        """
        current = [each for each in batch if self._current(each.tenure)]
        if not current:
            return [False] * len(batch)
        try:
            rows = await self._session.execute(STORE_CHUNKS, _parameters(current))
        except PostgresError as error:
            if len(batch) == 1:
                return [error]
            # What is wrong with one stream must not stop its neighbours.
            return [outcome for each in batch for outcome in await self.flush([each])]
        stored = {request_id for (request_id,) in rows}
        return [each in current and each.request.request_id in stored for each in batch]

    async def progress(self, request_id: int) -> Progress:
        """Behind every flush that has begun before. Raises LeaseLost, psycopg.Error."""
        ((number, value, acknowledged),) = await self._session.execute(
            READ_PROGRESS, {"request_id": request_id}
        )
        return Progress(None if number is None else Chunk(number, value), acknowledged or 0)

    def _current(self, tenure: Tenure) -> bool:
        return (
            tenure.incarnation == self._session.incarnation
            and self._epochs.get(tenure.shard_id) == tenure.epoch
        )


def _parameters(batch: Sequence[NewChunks]) -> dict[str, object]:
    rows = [(each.request, chunk) for each in batch for chunk in each.chunks]
    return {
        "shard_ids": [request.shard_id for request, _ in rows],
        "seqs": [request.seq for request, _ in rows],
        "request_ids": [request.request_id for request, _ in rows],
        "numbers": [chunk.number for _, chunk in rows],
        "values": [chunk.value for _, chunk in rows],
    }
