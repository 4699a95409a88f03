"""Tasks that wait for their limit in Postgres, as timers, because too many wait in memory already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entityq.postgres.queries import load
from entityq.runner.commit import Tenure
from entityq.runner.committer import LeaseStatements
from entityq.runner.request import Request

_PUT_OFF = load("permits.sql")["put_off"]


@dataclass(frozen=True, slots=True, eq=False)
class PutOff:
    """`delay`: seconds until it comes back."""

    tenure: Tenure
    request: Request
    delay: float


class PutOffs:
    """`epochs` are the leases held right now, by shard id."""

    def __init__(self, session: LeaseStatements, epochs: Mapping[int, int]) -> None:
        self._session = session
        self._epochs = epochs

    async def flush(self, batch: Sequence[PutOff]) -> list[bool | BaseException]:
        """Whether each is a timer now. Raises LeaseLost, psycopg.Error: then none is."""
        current = [late for late in batch if self._current(late.tenure)]
        if not current:
            return [False] * len(batch)
        rows = await self._session.execute(
            _PUT_OFF,
            {
                "shard_ids": [late.request.shard_id for late in current],
                "seqs": [late.request.seq for late in current],
                "request_ids": [late.request.request_id for late in current],
                "delays": [late.delay for late in current],
            },
        )
        moved = {request_id for (request_id,) in rows}
        return [late.request.request_id in moved for late in batch]

    def _current(self, tenure: Tenure) -> bool:
        return (
            tenure.incarnation == self._session.incarnation
            and self._epochs.get(tenure.shard_id) == tenure.epoch
        )
