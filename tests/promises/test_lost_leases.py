"""Every way to lose the lease session: nothing of the old life commits, and another one serves (LCK-01, LCK-02).

In each, a turn is under way when it happens, and ends only after the runner has joined again.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from entityq import Receipt
from tests.promises.cluster import Cluster, Running, Sending
from tests.promises.journals import GATES, RUNS, Journal
from tests.support.fault_proxy import FaultProxy, Faults, fault_proxy
from tests.support.losing_proxy import losing_proxy
from tests.support.servers import SHARDS, PrivateServers
from tests.support.waiting import eventually_async

# Seconds: how long a statement may take.
LEASE_TIME = 2.0
PATIENCE = 30.0


@pytest.fixture
async def proxy(cluster: Cluster) -> AsyncIterator[FaultProxy]:
    """Between the runners of `cluster` and Postgres, for all that is direct."""
    async with fault_proxy(cluster.servers.postgres_url) as proxy:
        cluster.app_settings(lease_url=proxy.url)
        yield proxy
        for running in cluster.running:
            await running.stop()


def wedge(proxy: FaultProxy, **directions: bool) -> None:
    """The connections that exist, for ever; new ones are well."""
    proxy.black_hole(**directions)
    proxy.apply(Faults(), existing=False)


async def under_way(cluster: Cluster, entity_id: str) -> tuple[Sending, Running, Receipt[int]]:
    """A runner that serves everything, and a turn of it that waits for its gate."""
    sender = await cluster.client()
    running = await cluster.start("one", lease_time=LEASE_TIME)
    await cluster.serving(running, shards=SHARDS)
    receipt = await sender.at(Journal, entity_id).held.send("first")
    await GATES[entity_id].wait_for_handler()
    return sender, running, receipt


async def joined_again(running: Running, lost: object) -> None:
    async def another() -> bool:
        assert not running.task.done(), running.task
        return running.runner.life not in {None, lost}

    await eventually_async(another, PATIENCE, "another life")


async def require_one_effect(
    cluster: Cluster, sender: Sending, receipt: Receipt[int], entity_id: str, runs: range
) -> None:
    """The handler may have run again, but was applied once, by the last life."""
    assert await asyncio.wait_for(receipt, PATIENCE) == 1
    assert await sender.at(Journal, entity_id).read() == ["first"]
    assert RUNS[entity_id, "first"] in runs
    rows = cluster.sql.execute("SELECT version FROM entityq.entity WHERE entity_id = %s", [entity_id])
    assert rows.fetchall() == [(1,)]


async def survive(
    cluster: Cluster, entity_id: str, fault: Callable[[int], Awaitable[None] | None], times: int = 1
) -> None:
    sender, running, receipt = await under_way(cluster, entity_id)
    for _ in range(times):
        life = running.life
        harm = fault(cluster.count(b"SELECT pid FROM entityq.runner"))
        if harm is not None:
            await harm
        await joined_again(running, life)
        assert life.reason
    await cluster.serving(running, shards=SHARDS)
    await GATES[entity_id].wait_for_handler(PATIENCE)
    GATES[entity_id].opened.set()
    await require_one_effect(cluster, sender, receipt, entity_id, runs=range(2, times + 2))


async def test_the_backend_is_terminated(cluster: Cluster) -> None:
    def terminate(pid: int) -> None:
        cluster.sql.execute("SELECT pg_terminate_backend(%s)", [pid])

    await survive(cluster, "terminated", terminate)


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_postgres_is_restarted(
    private_cluster: Cluster, private_servers: PrivateServers, how: str
) -> None:
    def restart() -> None:
        if how == "kill":
            private_servers.postgres.kill()
            private_servers.postgres.start()
        else:
            private_servers.postgres.restart()

    sender, running, receipt = await under_way(private_cluster, f"postgres {how}")
    life = running.life
    await asyncio.to_thread(restart)
    await joined_again(running, life)
    await private_cluster.serving(running, shards=SHARDS)
    await GATES[f"postgres {how}"].wait_for_handler(PATIENCE)
    GATES[f"postgres {how}"].opened.set()
    assert await asyncio.wait_for(receipt, PATIENCE) == 1
    assert await sender.at(Journal, f"postgres {how}").read() == ["first"]


async def test_the_socket_is_a_black_hole(cluster: Cluster, proxy: FaultProxy) -> None:
    """The old session lives on at the server, with its locks: the new one ends it."""
    old: list[int] = []

    def black_hole(pid: int) -> None:
        old.append(pid)
        wedge(proxy)

    await survive(cluster, "black hole", black_hole)
    alive = cluster.sql.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ANY (%s)", [old])
    assert alive.fetchall() == []


async def test_the_rebuilt_connection_wedges_too(cluster: Cluster, proxy: FaultProxy) -> None:
    """STO-23, and STO-24: nobody waits for the close of a connection that hangs."""
    await survive(cluster, "again", lambda _: wedge(proxy), times=3)


async def test_the_server_process_is_frozen(cluster: Cluster) -> None:
    """A query that never answers. What the server has of it is ended once it can be."""
    frozen: list[int] = []

    def freeze(pid: int) -> None:
        frozen.append(pid)
        os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def thaw_when_lost() -> None:
        await eventually_async(frozen_is_lost, PATIENCE, "the loss")
        thaw()

    async def frozen_is_lost() -> bool:
        lives = [running.runner.life for running in cluster.running]
        return bool(frozen) and all(life is None or bool(life.reason) for life in lives)

    thawing = asyncio.create_task(thaw_when_lost())
    try:
        await survive(cluster, "frozen", freeze)
    finally:
        thawing.cancel()
        await asyncio.wait([thawing])
        thaw()


async def test_a_commit_whose_answer_is_lost(cluster: Cluster) -> None:
    """L4: the server has done it, the runner does not know. The reply stands, and no handler runs again."""
    async with losing_proxy(cluster.servers.postgres_url) as proxy:
        cluster.app_settings(lease_url=proxy.url)
        sender, running, receipt = await under_way(cluster, "unknown")
        life = running.life
        proxy.lose(b"unknown")
        GATES["unknown"].opened.set()
        await asyncio.wait_for(proxy.lost.wait(), PATIENCE)
        await joined_again(running, life)
        await cluster.serving(running, shards=SHARDS)
        await require_one_effect(cluster, sender, receipt, "unknown", runs=range(1, 2))
        await running.stop()


async def test_an_unreachable_postgres_is_asked_again_until_it_answers(
    cluster: Cluster, proxy: FaultProxy
) -> None:
    """No lease is taken for held meanwhile, and the runner does not end."""
    sender, running, receipt = await under_way(cluster, "unreachable")
    proxy.refuse()
    proxy.cut()

    async def without_a_life() -> bool:
        return running.runner.life is None

    await eventually_async(without_a_life, PATIENCE, "the loss")
    GATES["unreachable"].opened.set()
    proxy.heal()
    await cluster.serving(running, shards=SHARDS)
    await require_one_effect(cluster, sender, receipt, "unreachable", runs=range(2, 3))
