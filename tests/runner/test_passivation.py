"""The end of an instance: alone with its entity, and whatever on_deactivate does."""

import asyncio
import sys

import pytest

from entityq import message
from entityq.address import Address, Shard
from entityq.codec import Limits, pack
from entityq.envelope import Envelope
from entityq.redis.keys import Keys
from tests.support.live import LiveCluster, Member, soon
from tests.support.places import neighbour, shard_of
from tests.support.stage import Actor


class Lodger(Actor):
    visits: int = 0

    async def on_activate(self) -> None:
        self._stage.tell(f"activate {self.id}")

    async def on_deactivate(self) -> None:
        await self._stage.enter(f"deactivate {self.id}", "deactivate")
        match self.id:
            case "cancelled":
                inner = asyncio.create_task(asyncio.Event().wait())
                inner.cancel()
                await inner
            case "exits":
                sys.exit(1)
            case "hangs":
                await asyncio.Event().wait()
            case _:
                self._stage.tell(f"deactivated {self.id}")

    @message
    async def visit(self) -> int:
        self.visits += 1
        return self.visits

    @message(persisted=False)
    async def ring(self, text: str) -> None:
        self._stage.tell(f"ring {self.id} {text}")


async def waits(member: Member, entity_id: str) -> None:
    """Until a request is in the entity's mailbox."""

    async def waiting() -> bool:
        found = [activation for activation in member.life.residents if activation.address.id == entity_id]
        return bool(found and found[0].mailbox)

    await soon(waiting, f"a request that waits for {entity_id}")


async def test_an_instance_ends_alone_when_a_request_comes_in_the_tick_of_its_passivation(
    cluster: LiveCluster,
) -> None:
    """One read brings an entry that needs the place, and one of the entity that has it."""
    app = cluster.app(max_resident=1)
    lodger = cluster.actor(app, Lodger).at("z")
    member = await cluster.start(app)
    await lodger.ring("1")
    cluster.stage.close("deactivate")
    stream = Keys(cluster.namespace).stream(Shard("default", shard_of("z")))
    payload = pack({"text": "2"}, Limits(), "x")
    envelopes = [
        Envelope(app.new_id(), Address("Lodger", entity_id), "ring", payload, False, 1)
        for entity_id in (neighbour("z"), "z")
    ]
    await cluster.redis_transaction(*(("XADD", stream, "*", "e", each.encode()) for each in envelopes))
    await cluster.stage.saw("deactivate z")
    await waits(member, "z")
    cluster.stage.open("deactivate")
    await cluster.stage.saw("ring z 2")
    expected = ["activate z", "ring z 1", "deactivate z", "deactivated z", "activate z", "ring z 2"]
    assert cluster.stage.journal == expected


@pytest.mark.parametrize("entity_id", ["cancelled", "exits", "hangs"])
async def test_whatever_on_deactivate_does_the_waiting_request_is_answered(
    cluster: LiveCluster, entity_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app(max_resident=1)
    lodger = cluster.actor(app, Lodger)
    member = await cluster.start(app)
    assert await lodger.at(entity_id).visit() == 1
    (activation,) = member.life.residents
    activation.deactivation_time = 0.1
    cluster.stage.close("deactivate")
    other = await lodger.at("other").visit.send()  # needs the place
    await cluster.stage.saw(f"deactivate {entity_id}")
    waiting = await lodger.at(entity_id).visit.send()
    if entity_id != "hangs":  # it is given up while it waits for the gate, or behind it
        await waits(member, entity_id)
    cluster.stage.open("deactivate")
    assert await waiting == 2
    assert await other == 1
    assert f"entity.deactivate_failed entity=Lodger/{entity_id}" in caplog.text
    assert not member.task.done()
