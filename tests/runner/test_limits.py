"""Limits on a real cluster: who waits, what goes on meanwhile, and what happens to those that wait."""

import asyncio
from typing import ClassVar

import pytest

from entityq import Interrupted, MailboxFull, MaxRunning, RateLimit, SendTimeout, message
from entityq.runner import room
from tests.support.live import LiveCluster, soon
from tests.support.stage import Actor

# One start, and no other in the time of any test.
ONE = RateLimit(1, per=1e6)


class Shop(Actor):
    sold: list[str] = []
    most: ClassVar[int] = 0
    now: ClassVar[int] = 0

    @message(rate_limit=ONE)
    async def once(self, text: str) -> list[str]:
        self._stage.tell(f"once {self.id} {text}")
        self.sold.append(text)
        return self.sold

    @message(rate_limit=RateLimit(1, per=0.4, scope="entity"))
    async def each(self, text: str) -> None:
        self._stage.tell(f"each {self.id} {text}")

    @message(rate_limit=RateLimit(20, burst=1))
    async def some(self, text: str) -> None:
        self._stage.tell(f"some {self.id} {text}")

    @message(max_running=2)
    async def two(self, gate: str = "") -> None:
        Shop.now += 1
        Shop.most = max(Shop.most, Shop.now)
        try:
            await self._stage.enter(f"two {self.id}", gate)
        finally:
            Shop.now -= 1

    @message(persisted=False, rate_limit=ONE)
    async def peek(self) -> str:
        return "peeked"

    @message
    async def free(self, text: str) -> list[str]:
        self.sold.append(text)
        return self.sold

    @message(persisted=False, concurrent=True)
    async def look(self) -> list[str]:
        return self.sold


@pytest.fixture(autouse=True)
def _counts() -> None:
    Shop.most = Shop.now = 0


async def test_what_waits_keeps_its_order_and_holds_no_place_that_others_need(cluster: LiveCluster) -> None:
    app = cluster.app(max_turns=2, prefetch=8, max_resident=2)
    shop = cluster.actor(app, Shop)
    member = await cluster.start(app)
    assert await shop.at("first").once("x") == ["x"]
    waiting = [await shop.at(name).once.send(text) for name in "abcd" for text in "xyz"]
    behind = [await shop.at(name).free.send("behind") for name in "abcd"]
    for number in range(20):
        assert await shop.at(f"other {number}").free("y") == ["y"]
    # Beside, and not behind it.
    assert await shop.at("a").look() == []
    assert cluster.stage.lines("once ") == ["first x"]
    assert len(waiting) + len(behind) == await cluster.pending()
    assert await cluster.rows("SELECT count(*) FROM pending WHERE attempts > 0 OR retries > 0") == [0]
    await cluster.stop(member)
    # Accepted for the next owner, whose own limit lets one start.
    await cluster.start(app, "r2")
    assert (await asyncio.wait_for(_first(cluster), 10)).endswith(" x")


async def _first(cluster: LiveCluster) -> str:
    await cluster.stage.until(lambda: len(cluster.stage.lines("once ")) > 1, "the start of the next owner")
    return cluster.stage.lines("once ")[1]


async def test_one_that_waits_can_be_cancelled_and_expires(cluster: LiveCluster) -> None:
    app = cluster.app()
    shop = cluster.actor(app, Shop)
    await cluster.start(app)
    await shop.at("a").once("x")
    cancelled = await shop.at("a").once.send("cancelled")
    expired = await shop.at("b").once.options(expires=0.3).send("expired")
    free = await shop.at("a").free.send("free")
    await cancelled.cancel()
    with pytest.raises(Interrupted, match="cancelled"):
        await cancelled
    assert await free == ["x", "free"]
    with pytest.raises(Interrupted, match="expired"):
        await expired
    assert cluster.stage.lines("once ") == ["a x"]


async def test_a_volatile_one_waits_until_the_deadline_of_its_caller(cluster: LiveCluster) -> None:
    app = cluster.app()
    shop = cluster.actor(app, Shop)
    member = await cluster.start(app)
    assert await shop.at("a").peek() == "peeked"
    with pytest.raises((SendTimeout, MailboxFull)):
        await shop.at("a").peek.options(timeout=0.3).ask()

    async def gone() -> bool:
        return all(activation.idle for activation in member.life.residents)

    await soon(gone, "nothing that waits")


async def test_entities_have_a_rate_of_their_own(cluster: LiveCluster) -> None:
    app = cluster.app()
    shop = cluster.actor(app, Shop)
    await cluster.start(app)
    begin = asyncio.get_running_loop().time()
    await asyncio.gather(*(shop.at(name).each(text) for name in "ab" for text in "xyz"))
    assert asyncio.get_running_loop().time() - begin >= 0.8
    assert sorted(cluster.stage.lines("each ")[:2]) == ["a x", "b x"]
    assert [line for line in cluster.stage.lines("each ") if line[0] == "a"] == ["a x", "a y", "a z"]


async def test_first_come_first_served_among_entities(cluster: LiveCluster) -> None:
    app = cluster.app()
    shop = cluster.actor(app, Shop)
    await cluster.start(app)
    receipts = [await shop.at(f"{number}").some.send("x") for number in range(10)]
    for receipt in receipts:
        await receipt
    assert cluster.stage.lines("some ") == [f"{number} x" for number in range(10)]


async def test_no_more_run_at_once(cluster: LiveCluster) -> None:
    app = cluster.app()
    shop = cluster.actor(app, Shop)
    await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await shop.at(f"{number}").two.send("g") for number in range(6)]
    await cluster.stage.until(lambda: len(cluster.stage.lines("two ")) == 2, "two turns")
    assert await shop.at("0x").free("y") == ["y"]
    cluster.stage.open("g")
    for receipt in receipts:
        await receipt
    assert Shop.most == 2


async def test_messages_of_a_type_share_its_limit(cluster: LiveCluster) -> None:
    app = cluster.app()
    shop = cluster.actor(app, Shop, max_running=1)
    await cluster.start(app)
    cluster.stage.close("g")
    held = await shop.at("a").two.send("g")
    await cluster.stage.saw("two a")
    free = await shop.at("b").free.send("y")
    some = await shop.at("c").some.send("y")
    assert await cluster.pending() == 3
    cluster.stage.open("g")
    await held
    assert await free == ["y"]
    await some


async def test_where_too_many_wait_they_wait_in_postgres(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.Room.__init__, "__defaults__", (4, *room.Room.__init__.__defaults__[1:]))  # type: ignore[index]
    app = cluster.app(prefetch=20)
    shop = cluster.actor(app, Shop)
    done: list[int] = []

    @app.task(max_running=MaxRunning(1))
    async def work(number: int, gate: str) -> None:
        await cluster.stage.enter(f"work {number}", gate)
        done.append(number)

    await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await work.send(number, "g") for number in range(30)]
    sells = [await shop.at(f"{number}").some.send(text) for number in range(15) for text in "xy"]
    assert await shop.at("other").free("y") == ["y"]

    async def put_off() -> bool:
        (count,) = await cluster.rows("SELECT count(*) FROM timer WHERE retries = 0 AND attempts = 0")
        return bool(count > 10)

    await soon(put_off, "tasks that wait as timers")
    cluster.stage.open("g")
    for receipt in (*receipts, *sells):
        await receipt
    assert sorted(done) == list(range(30))
    for number in range(15):
        assert [line for line in cluster.stage.lines("some ") if line.split()[0] == str(number)] == [
            f"{number} x",
            f"{number} y",
        ]
