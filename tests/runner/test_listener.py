from typing import Any

from entityq.postgres.outbox import unpublished_channel
from tests.support.live import LiveCluster, soon
from tests.support.probe import Probe
from tests.support.unpublished import insert_unpublished, request_of

LISTENERS = """
    SELECT pid FROM pg_stat_activity
    WHERE application_name = 'entityq listener' AND state = 'idle' AND query LIKE 'LISTEN%%'
      AND datname = current_database()
"""


async def leave_unpublished(cluster: LiveCluster, app: Any, probe: Probe, text: str) -> None:
    """A request that no stream has, and a notification of its shard."""
    async with app.open_client() as client:
        request = request_of(app, client, probe, "note", text=text)
        (place,) = (await insert_unpublished(app, request)).values()
    await notify(cluster, app, str(place.shard_id))


async def notify(cluster: LiveCluster, app: Any, payload: str) -> None:
    await cluster.rows("SELECT pg_notify(%s, %s)", unpublished_channel(app.settings.namespace), payload)


async def listening(cluster: LiveCluster) -> Any:
    async def found() -> Any:
        return await cluster.rows(LISTENERS)

    (pid,) = await soon(found, "LISTEN")
    return pid


async def test_a_notification_makes_the_shard_catch_up(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await listening(cluster)
    await leave_unpublished(cluster, app, probe, "x")
    await cluster.stage.saw("note a x")


async def test_what_is_not_ours_on_the_channel_is_ignored(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await listening(cluster)
    await notify(cluster, app, "not a list of shards")
    await notify(cluster, app, "99999")
    await leave_unpublished(cluster, app, probe, "x")
    await cluster.stage.saw("note a x")


async def test_a_lost_connection_is_opened_again(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    pid = await listening(cluster)
    await cluster.rows("SELECT pg_terminate_backend(%s)", pid)

    async def another() -> bool:
        return await cluster.rows(LISTENERS) not in ([], [pid])

    await soon(another, "another listener")
    await leave_unpublished(cluster, app, probe, "x")
    await cluster.stage.saw("note a x")
