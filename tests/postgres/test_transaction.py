"""The fence of transactional turns, against the session that takes their shard."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import psycopg
import pytest

from entityq.address import Shard
from entityq.postgres import lease_session
from entityq.postgres.connect import connect_lease, open_pool, open_unconfigured
from entityq.postgres.lease_session import LeaseSession
from entityq.postgres.overview import Change
from entityq.postgres.reshard import Resharding
from entityq.postgres.transaction import AsyncTurnConnection, Fence, TurnConnections, split
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import SCHEMA
from tests.support.waiting import eventually_async


@pytest.fixture
async def cluster(postgres_url: str, namespace: str) -> AsyncIterator[Cluster]:
    async with open_cluster(postgres_url, namespace) as opened:
        yield opened


def fence_of(cluster: Cluster, session: LeaseSession) -> Fence:
    return Fence(SCHEMA, cluster.facts.namespace, session.incarnation)


@pytest.fixture
async def turn(cluster: Cluster) -> AsyncIterator[AsyncTurnConnection]:
    connection = await open_unconfigured(cluster.url, "tests")
    yield AsyncTurnConnection(connection)
    await connection.close()


async def acquired(session: LeaseSession) -> bool:
    return bool(await session.acquire([1]))


async def test_the_taker_waits_for_a_turn_at_its_commit_and_ends_one_that_stands_still(
    cluster: Cluster, turn: AsyncTurnConnection, caplog: pytest.LogCaptureFixture
) -> None:
    owner, taker = await cluster.session(), await cluster.session()
    epoch = (await owner.acquire([1]))[1]
    fence = fence_of(cluster, owner)
    assert await fence.begin(turn, 1, epoch) is not None
    assert await fence.hold(turn, 1, epoch) is not None
    owner.end("frozen")
    # The lock is free, and the row is not. At first it is waited for; nothing is left locked meanwhile.
    await eventually_async(lambda: acquired(taker), 10, "the shard taken over")
    assert taker.epochs == {1: epoch + 1}
    assert "leases.overdue_turn_ended" in caplog.text
    with pytest.raises(psycopg.OperationalError):
        await turn.commit()


async def test_a_turn_that_commits_in_time_is_not_ended(
    cluster: Cluster, turn: AsyncTurnConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_session, "OVERDUE_TURN", 30.0)
    owner, taker = await cluster.session(), await cluster.session()
    epoch = (await owner.acquire([1]))[1]
    fence = fence_of(cluster, owner)
    await fence.begin(turn, 1, epoch)
    await turn.execute(b"SELECT %(x)b::text", {"x": "of the handler"})
    await fence.hold(turn, 1, epoch)
    owner.end("dead")

    async def free() -> bool:
        return await _count(cluster, "SELECT count(*) FROM pg_locks WHERE pid = %s", owner.backend.pid) == 0

    await eventually_async(free, 10, "the end of the owner's locks")
    assert await taker.acquire([1]) == {}
    await turn.commit()
    assert await taker.acquire([1]) == {1: epoch + 1}


async def test_only_the_turn_that_holds_this_shard_is_ended(
    cluster: Cluster, turn: AsyncTurnConnection
) -> None:
    """Not one that holds another shard, nor one of another cluster, whatever its shards are called."""
    owner, taker = await cluster.session(), await cluster.session()
    epochs = await owner.acquire([1, 2])
    fence = fence_of(cluster, owner)
    neighbours: list[AsyncTurnConnection] = []
    for other, shard_id in (
        (fence, 2),
        (Fence(SCHEMA, "x", owner.incarnation), 1),
    ):
        connection = await open_unconfigured(cluster.url, "tests")
        cluster.stack.push_async_callback(connection.close)
        neighbour = AsyncTurnConnection(connection)
        neighbours.append(neighbour)
        await other.begin(neighbour, shard_id, epochs[shard_id])
        await other.hold(neighbour, shard_id, epochs[shard_id])
    await fence.begin(turn, 1, epochs[1])
    await fence.hold(turn, 1, epochs[1])
    owner.end("frozen")
    ended = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s"

    async def one_is_gone() -> bool:
        assert await taker.acquire([1]) == {}  # the other cluster's has the row, too
        return await _count(cluster, ended, "entityq:% commit %") == 2

    await eventually_async(one_is_gone, 10, "the end of one turn")
    for neighbour in neighbours:
        await neighbour.commit()


async def test_a_turn_of_an_older_epoch_neither_begins_nor_commits(
    cluster: Cluster, turn: AsyncTurnConnection
) -> None:
    owner, taker = await cluster.session(), await cluster.session()
    epoch = (await owner.acquire([1]))[1]
    fence = fence_of(cluster, owner)
    await fence.begin(turn, 1, epoch)
    await owner.release([1])
    await taker.acquire([1])
    assert await fence.hold(turn, 1, epoch) is None
    await turn.roll_back()
    assert await fence.begin(turn, 1, epoch) is None
    await turn.roll_back()
    assert await fence.begin(turn, 1, epoch + 1) is not None
    await turn.roll_back()


async def test_a_reshard_waits_for_a_turn_at_its_commit(cluster: Cluster, turn: AsyncTurnConnection) -> None:
    """It is of an owner that is gone, and no lock of its session is left."""
    owner = await cluster.session()
    epoch = (await owner.acquire([1]))[1]
    fence = fence_of(cluster, owner)
    await fence.begin(turn, 1, epoch)
    await fence.hold(turn, 1, epoch)
    await owner.close()
    resharding = asyncio.create_task(reshard(cluster))

    async def waits_or_goes_on() -> bool:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        return resharding.done() or await _count(cluster, waiting) > 0

    await eventually_async(waits_or_goes_on, 10, "a reshard that waits")
    moving = "SELECT count(*) FROM entityq.reshard WHERE phase = 'moving'"
    assert (resharding.done(), await _count(cluster, moving)) == (False, 0)
    await turn.commit()
    assert await resharding


async def reshard(cluster: Cluster) -> bool:
    async def forget_streams(shards: Sequence[Shard]) -> None:
        assert shards

    async with await connect_lease(cluster.url, schema=SCHEMA) as connection:
        resharding = Resharding(
            connection,
            schema=SCHEMA,
            namespace=cluster.facts.namespace,
            say=lambda sentence: None,
            forget_streams=forget_streams,
            wait=10.0,
        )
        return await resharding.run(Change("default", 5))


async def test_both_kinds_share_the_connections(cluster: Cluster) -> None:
    async with open_pool(cluster.url, schema=SCHEMA) as pool:
        connections = TurnConnections("entityq:tests turn", url=cluster.url, pool=pool, size=2, left=2)
        a, b = await connections.take_async(), await connections.take_blocking()
        busy = [connections.all_busy]
        assert pool.max_size == 2
        waiting = asyncio.create_task(connections.take_async())
        await connections.give_back(b)
        c = await waiting  # in the place of the blocking one, which is closed
        assert b.connection.closed
        await connections.give_back(a)
        assert await connections.take_async() is a
        connections.give_up(c)
        assert [*busy, connections.all_busy] == [True, False]
        await connections.give_back(a)
        connections.end()
        await connections.ended(5)
        assert [taken.connection.closed for taken in (a, c)] == [True, True]


@pytest.mark.parametrize(
    ("size", "parts"), [(1, (1, 1)), (2, (1, 1)), (3, (2, 1)), (4, (2, 2)), (10, (8, 2))]
)
def test_turns_take_a_part_of_the_pool(size: int, parts: tuple[int, int]) -> None:
    assert split(size) == parts


async def _count(cluster: Cluster, query: str, *values: object) -> int:
    async with await open_unconfigured(cluster.url, "tests") as connection:
        row = await (await connection.execute(query.encode(), values)).fetchone()
    assert row is not None
    return int(row[0])
