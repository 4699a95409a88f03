"""What a turn may send: to types that the cluster has, and no more than one statement can take."""

from typing import Any, ClassVar

import pytest

from entityq import EntityDefect, PersistenceError, message
from tests.support.live import LiveCluster
from tests.support.probe import Probe, Refused
from tests.support.stage import Actor


class Sender(Actor):
    target: ClassVar[Probe]
    turns: int = 0

    @message
    async def send(self, count: int, size: int) -> int:
        self._stage.tell("send")
        self.turns += 1
        for number in range(count):
            self._stage.tell(f"sent {number}")
            await self.target.note.send("x" * size)
        return self.turns

    @message
    async def send_or_refuse(self) -> int:
        self.turns += 1
        try:
            await self.target.note.send("x")
        except PersistenceError as error:
            raise Refused(reason=error.what) from error
        return self.turns


async def test_a_send_to_a_type_that_the_cluster_does_not_have_is_a_defect_that_names_it(
    cluster: LiveCluster,
) -> None:
    app, other = cluster.app(), cluster.app()
    sender = cluster.actor(app, Sender)
    sender.target = cluster.actor(other, Probe).at("b")  # of an app that nobody has started
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="no entity type Probe"):
        await sender.at("a").send(1, 1)
    with pytest.raises(Refused, match="no entity type Probe"):
        await sender.at("a").send_or_refuse()
    assert cluster.stage.journal.count("send") == 1
    assert await cluster.pending() == 0
    assert await sender.at("a").send(0, 0) == 1


@pytest.mark.parametrize(("count", "size"), [(5_002, 1), (6, 900_000)])
async def test_a_turn_that_sends_too_much_is_refused_and_the_leases_stay(
    cluster: LiveCluster, count: int, size: int
) -> None:
    app = cluster.app()
    sender: Any = cluster.actor(app, Sender)
    sender.target = cluster.actor(app, Probe).at("b")
    member = await cluster.start(app)
    life = member.life
    with pytest.raises(EntityDefect, match="PayloadTooLarge"):
        await sender.at("a").send(count, size)
    # The last one was refused inside of the turn, before all were sent.
    assert cluster.stage.lines("sent ")[-1] == str(count - 2)
    assert await cluster.requests() == 1
    assert await sender.at("a").send(0, 0) == 1
    assert member.life is life
