"""The health of runners: of one that is alive but should not own shards, because it does not answer.

Whether a runner is alive is decided by locks and heartbeats. This decides only who is given shards, and never
ends anybody: what an unhealthy runner holds, it gives up orderly by itself.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from psycopg import Error

from entityq.postgres.membership import Member
from entityq.runner.ring import after

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """`reason`: the end of a sentence about an unhealthy runner."""

    healthy: bool
    reason: str = ""


class HealthCheck(Protocol):
    """How a runner finds out about its peers: `ping`, `k8s` and `noop` (setting `runner_health`)."""

    def pause(self, runners: int) -> float:
        """Seconds between two looks, in a cluster of so many runners."""
        ...

    async def look(self, peers: Sequence[Member]) -> Mapping[int, Judgement]:
        """By incarnation. Who is left out is not judged: the check itself did not work."""
        ...


class Records(Protocol):
    """Keeps what was found out; implemented by entityq.postgres.health.RunnerHealth."""

    async def record(self, incarnation: int, *, healthy: bool) -> bool: ...


class NoCheck:
    """`noop`: judges nobody."""

    def pause(self, runners: int) -> float:
        return 3600.0

    async def look(self, peers: Sequence[Member]) -> Mapping[int, Judgement]:
        return {}


def judged_by(me: int, members: Iterable[Member]) -> list[Member]:
    """The runners that this one judges, so that each has one judge, and that a healthy one.

    In the ring of incarnations these are the ones after it, up to the next healthy one. An unhealthy runner
    judges nobody: what is wrong may be on its side. Where all are unhealthy, each judges the next one, or
    nobody would ever be healthy again. Runners that leave are not judged.
    """
    staying = {member.incarnation: member for member in members if not member.draining}
    if me not in staying:
        return []
    others = [staying[incarnation] for incarnation in after(me, staying)]
    if not staying[me].healthy:
        return [] if any(other.healthy for other in others) else others[:1]
    healthy = next((number for number, other in enumerate(others) if other.healthy), len(others))
    return others[: healthy + 1]


class Health:
    """One incarnation's look after its peers."""

    def __init__(
        self, me: int, check: HealthCheck, records: Records, members: Callable[[], Sequence[Member]]
    ) -> None:
        """`members`: the cluster's live runners, as known now."""
        self._me = me
        self._check = check
        self._records = records
        self._members = members

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._check.pause(len(self._members())))
            peers = judged_by(self._me, self._members())
            if peers:
                await self._look(peers)

    async def _look(self, peers: Sequence[Member]) -> None:
        judgements = await self._check.look(peers)
        for peer in peers:
            judgement = judgements.get(peer.incarnation)
            if judgement is not None and judgement.healthy != peer.healthy:
                await self._record(peer, judgement)

    async def _record(self, peer: Member, judgement: Judgement) -> None:
        try:
            changed = await self._records.record(peer.incarnation, healthy=judgement.healthy)
        except Error as error:
            _log.warning(
                "The health of runner %s could not be recorded, trying again: %s", peer.incarnation, error
            )
            return
        if not changed:
            return
        who = f"name={peer.name} host={peer.host} incarnation={peer.incarnation}"
        if judgement.healthy:
            _log.warning("runner.healthy_again %s: it is given shards again", who)
        else:
            _log.warning(
                "runner.unhealthy %s: %s; others are given its shards as long as one of them is healthy",
                who,
                judgement.reason,
            )
