"""What a life hears from the others."""

import pytest

from entityq.redis.control import ControlMessage
from entityq.redis.keys import Keys
from tests.support.live import LiveCluster
from tests.support.probe import Probe
from tests.support.waiting import eventually_async


async def test_who_joined_and_ended_before_a_beat_has_read_it_is_told_of(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app()
    cluster.actor(app, Probe)
    await cluster.start(app)
    (incarnation,) = await cluster.rows("SELECT incarnation FROM runner")
    ended = incarnation + 1
    await cluster.rows(
        "INSERT INTO runner (incarnation, namespace, number, name, pid, backend_start, groups, types, weight)"
        " SELECT %s, namespace, 511, 'ended', 1, now(), groups, types, weight FROM runner",
        ended,
    )
    channel = Keys(cluster.namespace).control_channel()
    for message in (
        ControlMessage("joined", {"incarnation": "nonsense"}),
        ControlMessage("joined", {"incarnation": 1 << 70}),
        ControlMessage("joined", {"incarnation": ended}),
    ):

        async def heard(message: ControlMessage = message) -> bool:
            return bool(await cluster.redis("PUBLISH", channel, message.encode()))

        await eventually_async(heard, 10.0, "a subscriber")

    async def told() -> bool:
        return f"runner.died incarnation={ended} name=ended" in caplog.text

    await eventually_async(told, 10.0, "its end")
