"""Failed attempts on record, before the wait for the next one begins.

One statement for all that fail at the same time, on the session that holds the leases: whoever has lost them
cannot write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import Error as PostgresError

from entityq.postgres.queries import load
from entityq.runner.commit import Tenure
from entityq.runner.committer import LeaseStatements
from entityq.runner.request import Request

SET_BACK = load("attempts.sql")["set_back"]


@dataclass(frozen=True, slots=True, eq=False)
class Setback:
    """An attempt that ended in a defect, and is followed by another one.

    `lasted`: seconds that it took. `delay`: seconds until the next one. `parked`: until then the request is no
    pending one, and what is behind it goes on.
    """

    tenure: Tenure
    request: Request
    delay: float
    lasted: float
    parked: bool


class Setbacks:
    """`epochs` are the leases held right now, by shard id."""

    def __init__(self, session: LeaseStatements, epochs: Mapping[int, int]) -> None:
        self._session = session
        self._epochs = epochs

    async def flush(self, batch: Sequence[Setback]) -> list[bool | BaseException]:
        """Whether each is on record: not where the request is answered, or the lease is gone.

        Raises LeaseLost when the session is gone.
        """
        return await self._record(batch)

    async def _record(self, batch: Sequence[Setback]) -> list[bool | BaseException]:
        current = [setback for setback in batch if self._current(setback.tenure)]
        if not current:
            return [False] * len(batch)
        try:
            rows = await self._session.execute(SET_BACK, _parameters(current))
        except PostgresError as error:
            if len(batch) == 1:
                return [error]
            # A row that somebody has locked must not stop its neighbours.
            return [outcome for setback in batch for outcome in await self._record([setback])]
        recorded = {request_id for (request_id,) in rows}
        return [setback.request.request_id in recorded for setback in batch]

    def _current(self, tenure: Tenure) -> bool:
        return (
            tenure.incarnation == self._session.incarnation
            and self._epochs.get(tenure.shard_id) == tenure.epoch
        )


def _parameters(batch: Sequence[Setback]) -> dict[str, object]:
    return {
        "shard_ids": [setback.request.shard_id for setback in batch],
        "seqs": [setback.request.seq for setback in batch],
        "request_ids": [setback.request.request_id for setback in batch],
        "retries": [setback.request.retries for setback in batch],
        "delays": [setback.delay for setback in batch],
        "lasted": [setback.lasted for setback in batch],
        "parked": [setback.parked for setback in batch],
    }
