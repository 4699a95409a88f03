"""The limits of one incarnation, put together."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from entityq.batching import Batcher
from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.membership import Member
from entityq.redis.rates import SharedRates
from entityq.runner.deferrals import Deferrals
from entityq.runner.limits import Limits, Overflow
from entityq.runner.places import Places
from entityq.runner.put_offs import PutOff, PutOffs
from entityq.runner.resources import Resources
from entityq.runner.shared_gates import SharedGates
from entityq.runner.tasks import Tasks

PUT_OFF_BATCH = 1_000


class Limiting:
    """`limits` is what activations ask; `run` belongs to the tasks of the life.

    Args:
        members: the live runners.
        overflow: where requests go for which there is no room to wait.
        timer_in: told of a timer that is due after so many seconds.
    """

    def __init__(
        self,
        session: LeaseSession,
        resources: Resources,
        tasks: Tasks,
        deferrals: Deferrals,
        places: Places,
        *,
        members: Callable[[], Collection[Member]],
        overflow: Callable[[], Overflow],
        timer_in: Callable[[float], None],
    ) -> None:
        settings = resources.settings
        self._control = resources.control
        self._tasks = tasks
        self._timer_in = timer_in
        self._gates = SharedGates(
            session.incarnation,
            session,
            SharedRates(resources.redis, resources.keys),
            resources.control,
            schema=settings.schema,
            namespace=settings.namespace,
            members=members,
            start=self._start,
        )
        self._put_offs = Batcher[PutOff, bool](
            PutOffs(session, session.epochs).flush, max_items=PUT_OFF_BATCH, max_size=PUT_OFF_BATCH
        )
        self.limits = Limits(
            self._gates,
            resources.definitions,
            start=self._start,
            lent=places.lent_waiting,
            overflow=overflow,
            call_in=deferrals.end_backoff,
        )

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            self._tasks.start(work, name)
        except RuntimeError:
            # The life ends, and its permits with it: a last turn has given its own back.
            work.close()

    async def put_off(self, late: PutOff) -> bool:
        """Raises psycopg.Error, LeaseLost, BatcherClosed."""
        moved = await self._put_offs.submit(late, 1)
        if moved:
            self._timer_in(late.delay)
        return moved

    async def run(self) -> None:
        with self._control.listening(self._gates.heard):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._put_offs.run(), name="entityq put-offs")
                group.create_task(self.limits.run(), name="entityq overdue waits")
