"""What a runner does when a part of it that outlives its incarnations ends."""

import asyncio

import pytest

from tests.support.live import LiveCluster
from tests.support.probe import Probe


@pytest.mark.parametrize("name", ["entityq control channel", "entityq facts"])
async def test_a_runner_whose_part_has_ended_hands_over_and_ends_with_an_error(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await probe.note.send("x", gate="g")
    await cluster.stage.saw("note a x")
    (part,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    part.cancel()
    await asyncio.wait([part], timeout=5)
    cluster.stage.open("g")  # the turn under way is not cut off
    await asyncio.wait([member.task], timeout=10)
    with pytest.raises(RuntimeError, match=f"{name}.* of the runner r1 ended"):
        member.task.result()
    assert "runner.broken" in caplog.text
    assert await cluster.rows("SELECT count(*) FROM runner") == [0]
    assert await receipt == 1
    await cluster.crash(member)
