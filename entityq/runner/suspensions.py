"""Attempts that end because they wait for a signal, on record before anything else happens.

On the session that holds the leases: whoever has lost them cannot write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import Error as PostgresError

from entityq.postgres.queries import load
from entityq.runner.commit import Tenure
from entityq.runner.committer import LeaseStatements
from entityq.runner.request import Request

_SQL = load("signals.sql")
SUSPEND, END_WAIT = _SQL["suspend"], _SQL["end_wait"]


@dataclass(frozen=True, slots=True, eq=False)
class Suspension:
    """`timeout`: seconds, None: none. `parked`: until then the request is no pending one, and what is behind it
    goes on."""

    tenure: Tenure
    request: Request
    name: str
    timeout: float | None
    parked: bool


class Suspensions:
    """`epochs` are the leases held right now, by shard id."""

    def __init__(self, session: LeaseStatements, epochs: Mapping[int, int]) -> None:
        self._session = session
        self._epochs = epochs

    async def flush(self, batch: Sequence[Suspension]) -> list[bool | BaseException | None]:
        """Whether each has its signal already; None: the request is answered or cancelled, or the lease is gone.

        Raises LeaseLost when the session is gone.
        """
        current = [each for each in batch if self._current(each.tenure)]
        if not current:
            return [None] * len(batch)
        try:
            rows = await self._session.execute(SUSPEND, _parameters(current))
        except PostgresError as error:
            if len(batch) == 1:
                return [error]
            # A row that somebody has locked must not stop its neighbours.
            return [outcome for each in batch for outcome in await self.flush([each])]
        signalled: dict[int, bool] = dict(row[:2] for row in rows)
        return [signalled.get(each.request.request_id) for each in batch]

    async def end_wait(self, request: Request) -> None:
        """Its time has passed. Raises LeaseLost, psycopg.Error."""
        await self._session.execute(END_WAIT, {"request_id": request.request_id})

    def _current(self, tenure: Tenure) -> bool:
        return (
            tenure.incarnation == self._session.incarnation
            and self._epochs.get(tenure.shard_id) == tenure.epoch
        )


def _parameters(batch: Sequence[Suspension]) -> dict[str, object]:
    return {
        "shard_ids": [each.request.shard_id for each in batch],
        "seqs": [each.request.seq for each in batch],
        "request_ids": [each.request.request_id for each in batch],
        "names": [each.name for each in batch],
        "timeouts": [each.timeout for each in batch],
        "parked": [each.parked for each in batch],
    }
