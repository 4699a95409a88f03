"""One runner of a worker, from its first try to reach the servers to its end."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack

import psycopg
from redis.exceptions import RedisError

from entityq import EntityQ, PersistenceError
from entityq.runner.runner import Runner
from entityq_cli.exit_code import ExitCode
from entityq_cli.link import Link
from entityq_cli.migrating import migrate_servers
from entityq_cli.report import Serving
from entityq_cli.stop_orders import StopOrders, end_within

_log = logging.getLogger(__name__)

# Seconds.
_FIRST_DELAY = 0.2
_LONGEST_DELAY = 5.0
_DRAIN_MARGIN = 5.0
_COLD_SECONDS = 3.0


class Served:
    """`run` returns the exit code of the process."""

    def __init__(
        self, app: EntityQ, *, name: str, place: str, groups: Sequence[str], link: Link, migrate: bool
    ) -> None:
        """`groups` empty: those of the settings, or all. `migrate`: also where the servers are configured."""
        self._app = app
        self._name = name
        self._place = place
        self._groups = groups
        self._link = link
        self._migrate = migrate or app.settings.servers() is None
        self._orders = StopOrders()
        self._runner: Runner | None = None
        self._code = ExitCode.DONE

    async def run(self) -> ExitCode:
        """Raises UnsafeConfiguration, in an ExceptionGroup, where the runner may not start."""
        self._orders.listen()
        async with asyncio.TaskGroup() as tasks:
            life = tasks.create_task(self._live(), name="life of the runner")
            orders = (
                tasks.create_task(self._drain(life), name="order to drain"),
                tasks.create_task(self._stop_cold(life), name="order to stop cold"),
                tasks.create_task(self._follow_worker(), name="end of the worker"),
            )
            await asyncio.wait([life])
            for task in orders:
                task.cancel()
        return self._code

    async def _live(self) -> None:
        async with AsyncExitStack() as stack:
            self._runner = runner = await self._open(stack)
            async with asyncio.TaskGroup() as tasks:
                announcing = tasks.create_task(self._announce(runner), name="announcement")
                await runner.run()
                announcing.cancel()

    async def _open(self, stack: AsyncExitStack) -> Runner:
        """A worker that starts before its servers waits for them, and says so."""
        delay = _FIRST_DELAY
        while True:
            try:
                if self._migrate:
                    servers = stack.enter_context(self._app.start_servers())
                    await migrate_servers(servers, self._app.settings)
                    self._migrate = False
                opening = self._app.open_runner(name=self._name, groups=self._groups, place=self._place)
                return await stack.enter_async_context(opening)
            except PersistenceError as error:
                reason = f"{error.what}. {error.advice}"
            except (psycopg.OperationalError, RedisError, OSError) as error:
                reason = f"{' '.join(str(error).split())}."
            _log.warning("runner.waiting_for_servers: %s Trying again in %.1f s", reason, delay)
            await asyncio.sleep(delay)
            delay = min(_LONGEST_DELAY, delay * 2)

    async def _announce(self, runner: Runner) -> None:
        await runner.serving.wait()
        self._link.send(Serving())

    async def _drain(self, life: asyncio.Task[None]) -> None:
        await self._orders.drain.wait()
        limit = self._app.settings.termination_time + _DRAIN_MARGIN
        stopping = asyncio.create_task(self._stop(life), name="drain")
        try:
            # A deadline that cancels nothing: on Python 3.11 a cancellation can be lost on its way.
            await asyncio.wait([life], timeout=limit)
        finally:
            stopping.cancel()
        if not life.done():
            _log.error("runner.drain_overdue seconds=%g: stopping cold", limit)
            self._orders.stop_cold()

    async def _stop(self, life: asyncio.Task[None]) -> None:
        if self._runner is None:
            life.cancel()  # nothing is served yet
        else:
            await self._runner.stop()

    async def _stop_cold(self, life: asyncio.Task[None]) -> None:
        await self._orders.cold.wait()
        self._code = ExitCode.FAILED
        end_within(_COLD_SECONDS, self._code)
        life.cancel()

    async def _follow_worker(self) -> None:
        await self._link.closed()
        _log.error("runner.worker_gone: draining, because nobody would start this runner again")
        self._orders.drain.set()
