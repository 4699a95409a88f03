"""State versions on a real cluster: old and new code, one after the other and back, on the same entities."""

import logging

import pytest

from entityq import EntityQ, RunnerNotRegistered, message, upcast
from entityq.upcast import Fields
from tests.support.live import LiveCluster, soon
from tests.support.places import neighbour
from tests.support.probe import Refused
from tests.support.stage import Actor


class OldPurse(Actor):
    """In euros."""

    amount: int = 0

    @message
    async def put(self, euros: int, gate: str = "") -> int:
        await self._stage.enter(f"old {self.id} {euros}", gate)
        self.amount += euros
        return self.amount

    @message
    async def refuse(self) -> None:
        raise Refused(reason="no")

    @message
    async def look(self) -> int:
        return self.amount

    @message(persisted=False, concurrent=True)
    async def read(self) -> int:
        return self.amount


class NewPurse(Actor):
    """In cents."""

    amount: int = 0

    @upcast(1)
    @staticmethod
    def to_cents(fields: Fields) -> Fields:
        return {"amount": fields["amount"] * 100}

    @message
    async def put(self, euros: int) -> int:
        self._stage.tell(f"new {self.id} {euros}")
        self.amount += euros * 100
        return self.amount

    @message
    async def take_cents(self, cents: int) -> int:
        self.amount -= cents
        return self.amount

    @message
    async def refuse(self) -> None:
        raise Refused(reason="no")

    @message
    async def look(self) -> int:
        return self.amount

    @message(persisted=False, concurrent=True)
    async def read(self) -> int:
        return self.amount


def old_code(cluster: LiveCluster) -> tuple[EntityQ, type[OldPurse]]:
    app = cluster.app()
    return app, cluster.actor(app, OldPurse, type="Purse")


def new_code(cluster: LiveCluster) -> tuple[EntityQ, type[NewPurse]]:
    app = cluster.app()
    return app, cluster.actor(app, NewPurse, type="Purse", state_version=2)


async def versions(cluster: LiveCluster, entity_id: str) -> tuple[int, int]:
    """Of the row and of the class that wrote the state."""
    (row,) = await cluster.rows("SELECT version, state_version FROM entity WHERE entity_id = %s", entity_id)
    return row[0], row[1]


async def test_new_code_reads_an_old_state_and_stores_the_new_version_when_it_changes(
    cluster: LiveCluster,
) -> None:
    old, old_purse = old_code(cluster)
    new, new_purse = new_code(cluster)
    member = await cluster.start(old, "old")
    assert await old_purse.at("a").put(5) == 5
    assert await versions(cluster, "a") == (1, 1)
    await cluster.stop(member)
    await cluster.start(new, "new")
    purse = new_purse.at("a")
    assert await purse.read() == 500
    # Turns that leave the state as it is leave its version, too.
    with pytest.raises(Refused):
        await purse.refuse()
    assert await purse.look() == 500
    assert await versions(cluster, "a") == (3, 1)
    assert await purse.put(1) == 600
    assert await versions(cluster, "a") == (4, 2)
    assert await new_purse.at("b").put(1) == 100
    assert await versions(cluster, "b") == (1, 2)


async def test_a_new_state_of_the_same_bytes_as_the_old_one_is_stored(cluster: LiveCluster) -> None:
    """5 euros, and after a turn of the new code 5 cents."""
    old, old_purse = old_code(cluster)
    new, new_purse = new_code(cluster)
    member = await cluster.start(old, "old")
    assert await old_purse.at("a").put(5) == 5
    await cluster.stop(member)
    member = await cluster.start(new, "new")
    assert await new_purse.at("a").take_cents(495) == 5
    await cluster.stop(member)
    await cluster.start(new, "newer")
    assert await new_purse.at("a").look() == 5


async def test_old_code_leaves_what_new_code_has_stored_for_new_code(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    old, old_purse = old_code(cluster)
    new, new_purse = new_code(cluster)
    member = await cluster.start(new, "new")
    assert await new_purse.at("a").put(5) == 500
    await cluster.stop(member)
    member = await cluster.start(old, "old")
    purse = old_purse.at("a")
    with caplog.at_level(logging.WARNING):
        receipts = [await purse.put.send(number) for number in (1, 2, 3)]
        # Its neighbour in the shard goes on, and by then the others have been looked at.
        assert await old_purse.at(neighbour("a")).put(7) == 7
        with pytest.raises(RunnerNotRegistered, match="stored with version 2, this code has 1"):
            await purse.read()
    warnings = [record for record in caplog.records if "request.newer_state" in record.getMessage()]
    persisted = [warning for warning in warnings if "message=put" in warning.getMessage()]
    assert len(persisted) == 1, "one warning for all that wait"
    assert "Purse/a" in persisted[0].getMessage()
    assert await cluster.pending() == 3
    assert await versions(cluster, "a") == (1, 2)
    await cluster.stop(member)
    await cluster.start(new, "new")
    assert [await receipt for receipt in receipts] == [600, 800, 1100]
    assert cluster.stage.lines("new a ") == ["5", "1", "2", "3"]
    assert cluster.stage.lines("old a ") == []


async def test_more_requests_than_a_mailbox_holds_wait_for_new_code_without_being_read_again(
    cluster: LiveCluster,
) -> None:
    old, old_purse = old_code(cluster)
    new, new_purse = new_code(cluster)
    member = await cluster.start(new, "new")
    assert await new_purse.at("a").put(0) == 0
    await cluster.stop(member)
    receipts = [await old_purse.at("a").put.send(1) for _ in range(250)]
    member = await cluster.start(old, "old")

    async def left() -> bool:
        life = member.life
        blocked = any("a" in {address.id for address in owned.blocked} for owned in life.shards)
        return blocked and not len(life.deferrals)

    await soon(left, "an entity that waits for newer code, and is not fed")
    assert len(member.life.prefetch) == 0
    assert await cluster.pending() == 250
    await cluster.stop(member)
    await cluster.start(new, "new")
    assert [await receipt for receipt in receipts] == [100 * number for number in range(1, 251)]


async def test_old_code_can_forget_what_it_cannot_read(cluster: LiveCluster) -> None:
    old, old_purse = old_code(cluster)
    new, new_purse = new_code(cluster)
    member = await cluster.start(new, "new")
    assert await new_purse.at("a").put(5) == 500
    await cluster.stop(member)
    await cluster.start(old, "old")
    await old_purse.at("a").forget()
    assert await old_purse.at("a").put(1) == 1
    assert await versions(cluster, "a") == (1, 1)
