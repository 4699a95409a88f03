from typing import Any

from entityq.postgres.facts import facts_channel
from entityq.postgres.outbox import unpublished_channel
from tests.support.live import LiveCluster, soon
from tests.support.probe import Probe
from tests.support.servers import SHARDS
from tests.support.unpublished import insert_unpublished, request_of
from tests.support.waiting import eventually_async


async def leave_unpublished(cluster: LiveCluster, app: Any, probe: Probe, text: str) -> None:
    """A request that no stream has, and a notification of its shard."""
    async with app.open_client() as client:
        request = request_of(app, client, probe, "note", text=text)
        (place,) = (await insert_unpublished(app, request)).values()
    await notify(cluster, app, str(place.shard_id))


async def notify(cluster: LiveCluster, app: Any, payload: str) -> None:
    await cluster.rows("SELECT pg_notify(%s, %s)", unpublished_channel(app.settings.namespace), payload)


async def test_a_notification_makes_the_shard_catch_up(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await leave_unpublished(cluster, app, probe, "x")
    await cluster.stage.saw("note a x")


async def test_what_is_not_ours_on_the_channel_is_ignored(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await notify(cluster, app, "not a list of shards")
    await notify(cluster, app, "99999")
    await leave_unpublished(cluster, app, probe, "x")
    await cluster.stage.saw("note a x")


async def test_the_session_after_a_lost_one_listens_too(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    member = await cluster.start(app)
    lost = member.life
    await cluster.rows("SELECT pg_terminate_backend(pid) FROM runner")

    async def serves_again() -> bool:
        return member.runner.life is not lost and member.serves(SHARDS)

    await soon(serves_again, "the runner serves again")
    await leave_unpublished(cluster, app, probe, "x")
    await cluster.stage.saw("note a x")


async def test_a_group_that_was_closed_is_given_up_as_soon_as_that_is_told(cluster: LiveCluster) -> None:
    """Unasked, the facts are read after ten seconds."""
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    member = await cluster.start(app)
    life = member.life

    async def none_held() -> bool:
        return len(life.shards) == 0

    await cluster.rows("UPDATE shard_group SET open = false")
    await cluster.rows("SELECT pg_notify(%s, '')", facts_channel(app.settings.namespace))
    await eventually_async(none_held, 5.0, "the shards given up")
    await cluster.rows("UPDATE shard_group SET open = true")
    await cluster.rows("SELECT pg_notify(%s, '')", facts_channel(app.settings.namespace))

    async def all_held() -> bool:
        return member.serves(SHARDS)

    await eventually_async(all_held, 5.0, "the shards taken again")
    assert member.life is life
    assert await probe.note("x") == 1


async def test_nobody_has_a_connection_only_to_listen(cluster: LiveCluster) -> None:
    """The lease session does, and has other work soon."""
    app = cluster.app()
    cluster.actor(app, Probe)
    await cluster.start(app)
    sessions = (
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
    )

    async def none() -> bool:
        return await cluster.rows(sessions) == []

    await eventually_async(none, 10)
