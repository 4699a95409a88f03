"""Removes requests whose time has come, in small pages, without haste and on the pool.

The owner of a group's first shard does it for the whole group: so that one runner does, as a rule. Two at once, or
one whose lease has gone, do no harm.
"""

import asyncio
import logging
import time

from psycopg import Error as PostgresError

from entityq.outage import Outage
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.facts import Group
from entityq.postgres.retention import Purged, Retention
from entityq.runner.purge_plan import TENTH, PurgePlan, Stretch
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

PAGE = 1_000
# Pauses after a page, as a multiple of the time that it took. A front that is behind must catch up, whatever the rate
# of requests is; a round that looks in vain takes a tenth of a connection.
BEHIND, BUSY, IN_VAIN = 0.25, 1.0, 9.0
# Seconds between two looks when nothing more is due.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 10.0


class Purger:
    """Of one incarnation."""

    def __init__(self, retention: Retention, shards: ShardTable, facts: CurrentFacts) -> None:
        self._retention = retention
        self._shards = shards
        self._facts = facts
        self._plans: dict[str, PurgePlan] = {}
        self._outage = Outage("purge.failed", "purge.works_again", "what is due is kept until then")

    async def run(self) -> None:
        while True:
            pause = LONGEST_PAUSE
            try:
                for group in self._facts.now.groups.values():
                    if group.first_shard in self._shards:
                        pause = min(pause, await self._look(group))
                    else:
                        self._plans.pop(group.name, None)
            except (PostgresError, OSError) as error:
                self._outage.failed(error)
            else:
                self._outage.worked()
            await asyncio.sleep(pause)

    async def _look(self, group: Group) -> float:
        """One page of all that is to be looked at; returns how long the next look can wait, in seconds.

        The round comes last, and waits for the fronts.
        """
        plan = self._plans.setdefault(group.name, PurgePlan())
        terms = await self._retention.terms(group)
        more = False
        for stretch in plan.stretches(terms):
            if stretch.front is not None or not more:
                more |= await self._page(group, plan, stretch)
        idle = min(max(TENTH * TENTH * terms.kept[0], SHORTEST_PAUSE), LONGEST_PAUSE)
        return 0 if more else idle

    async def _page(self, group: Group, plan: PurgePlan, stretch: Stretch) -> bool:
        """Whether there is more of it."""
        began = time.monotonic()
        purged = await self._retention.purge(group, stretch.after, stretch.until, PAGE)
        whole = purged.looked < PAGE
        plan.done(stretch, purged.last, whole=whole)
        await asyncio.sleep((time.monotonic() - began) * _rest(stretch, purged, whole=whole))
        return not whole


def _rest(stretch: Stretch, purged: Purged, *, whole: bool) -> float:
    """How long to pause after a page, as a multiple of the time that it took."""
    if stretch.front is not None:
        return BUSY if whole else BEHIND
    return BUSY if purged.removed or purged.emptied else IN_VAIN
