"""Transport and codec: TRN and ENT of the checklist (see README.md here)."""

import asyncio
from decimal import Decimal

import pytest

from entityq import EntityDefect, message
from entityq.runner.commit import Commit
from entityq.runner.committer import Committer
from tests.support.live import LiveCluster
from tests.support.places import neighbours
from tests.support.stage import Actor


class Courier(Actor):
    total: Decimal = Decimal(0)

    @message
    async def echo(self, data: bytes) -> bytes:
        return data

    @message
    async def reply_with(self, fits: bool, gate: str) -> int:
        await self._stage.enter(f"reply {self.id}", gate)
        return 1 if fits else "no number"  # type: ignore[return-value]  # what this test is about

    @message(persisted=False)
    async def break_down(self) -> int:
        self._stage.tell("break_down")
        raise RuntimeError("broken")

    @message
    async def add(self, amount: Decimal) -> Decimal:
        self.total += amount
        return self.total

    @message(persisted=False)
    async def look(self, amount: Decimal, gate: str) -> Decimal:
        await self._stage.enter("look", gate)
        return amount


async def test_trn_01_a_reply_that_cannot_be_encoded_fails_its_request_only(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours, which commit in the same statement, are answered."""
    batches: list[int] = []
    flush = Committer.flush

    async def counted(self: Committer, batch: list[Commit]) -> object:
        batches.append(len(batch))
        return await flush(self, batch)

    monkeypatch.setattr(Committer, "flush", counted)
    app = cluster.app()
    courier = cluster.actor(app, Courier)
    await cluster.start(app)
    others = neighbours("a")
    names = ["a", *(next(others) for _ in range(4))]
    cluster.stage.close("g")
    asking = [
        asyncio.create_task(courier.at(name).reply_with(fits=name != names[2], gate="g")) for name in names
    ]
    await cluster.stage.saw(*(f"reply {name}" for name in names))
    cluster.stage.open("g")
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results.pop(2), EntityDefect)
    assert results == [1, 1, 1, 1]
    assert max(batches) > 1
    assert cluster.stage.journal.count(f"reply {names[2]}") == 1


async def test_trn_03_a_defect_of_a_volatile_request_is_its_result(cluster: LiveCluster) -> None:
    app = cluster.app()
    courier = cluster.actor(app, Courier).at("a")
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="RuntimeError"):
        await courier.break_down()
    assert cluster.stage.journal == ["break_down"]


async def test_trn_08_bytes_travel_as_they_are(cluster: LiveCluster) -> None:
    app = cluster.app()
    courier = cluster.actor(app, Courier).at("a")
    await cluster.start(app)
    data = bytes(range(256)) * 1000
    assert await courier.echo(data) == data


async def test_trn_08_payloads_are_read_in_the_serializer_that_they_were_written_in(
    cluster: LiveCluster,
) -> None:
    """A client that writes JSON, a runner that writes msgpack."""
    writing, running = cluster.app(serializer="json+gzip"), cluster.app()
    courier = cluster.actor(writing, Courier).at("a")
    cluster.actor(running, Courier)
    await cluster.start(running)
    assert await courier.add(Decimal("1.10")) == Decimal("1.10")
    (envelope,) = await cluster.rows("SELECT envelope FROM outbox")
    assert b"json+gzip" in envelope


async def test_trn_10_decimals_travel_and_a_volatile_send_does_not_wait(cluster: LiveCluster) -> None:
    app = cluster.app()
    courier = cluster.actor(app, Courier).at("a")
    await cluster.start(app)
    receipt = await courier.add.send(Decimal("12345678901234567890.123"))
    assert await receipt == Decimal("12345678901234567890.123")
    cluster.stage.close("g")
    await courier.look.send(Decimal("0.1"), "g")
    await cluster.stage.saw("look")
