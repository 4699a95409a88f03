"""A batch in a turn is part of the turn."""

from typing import ClassVar

import pytest

from entityq import EntityQ, message
from tests.support.live import LiveCluster
from tests.support.probe import Probe, Refused
from tests.support.stage import Actor


class Teller(Actor):
    app: ClassVar[EntityQ]
    target: ClassVar[Probe]

    @message
    async def send(self, *, fail: bool = False) -> list[str]:
        add = self.target.add
        sent = await self.app.send_many([add.request(1, "k"), add.request(1, "k"), add.request(2, "k")])
        if fail:
            raise Refused(reason="after the batch")
        return [each.status for each in sent]

    @message
    def send_in_a_thread(self) -> list[str]:
        sent = self.app.delay_many([self.target.add.request(5, "from a thread")])
        return [each.status for each in sent]


async def test_a_batch_commits_with_the_turn(cluster: LiveCluster) -> None:
    app = cluster.app()
    teller, probe = cluster.actor(app, Teller), cluster.actor(app, Probe)
    teller.app, teller.target = app, probe.at("b")
    await cluster.start(app)
    with pytest.raises(Refused):
        await teller.at("a").send(fail=True)
    assert await teller.at("a").send() == ["accepted", "duplicate", "conflict"]
    assert await teller.at("a").send_in_a_thread() == ["accepted"]
    assert await probe.at("b").add(10, "last") == 16
    assert cluster.stage.lines("add b ") == ["k", "from a thread", "last"]
