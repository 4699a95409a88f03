"""A reshard where there is more than one group: others go on, and a type moves from one to another."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from entityq import Entity, EntityQ, UnsafeConfiguration, message
from entityq.client.client import Client
from entityq.postgres.overview import Change
from tests.promises.cluster import Cluster, open_cluster
from tests.promises.resharding import reshard
from tests.support.servers import SHARDS
from tests.support.waiting import eventually_async

LONG = 30.0


def bank(shard_group: str) -> tuple[EntityQ, Any, Any]:
    """The app, and its types Account and Invoice, of which Invoice is in `shard_group`."""
    app = EntityQ("groups")

    @app.entity(shard_group=shard_group)
    class Invoice(Entity):
        texts: list[str] = []

        @message
        async def add(self, text: str) -> int:
            self.texts.append(text)
            return len(self.texts)

        @message(persisted=False)
        async def read(self) -> list[str]:
            return self.texts

    @app.entity
    class Account(Entity):
        entries: list[str] = []

        @message
        async def note(self, text: str) -> int:
            self.entries.append(text)
            return len(self.entries)

        @message
        async def invoice(self, text: str) -> int:
            self.entries.append(text)
            await Invoice.at("i").add.send(text)
            return len(self.entries)

    return app, Account, Invoice


@asynccontextmanager
async def two_groups(
    postgres_url: str, redis_url: str, namespace: str
) -> AsyncGenerator[tuple[Cluster, Any, Any]]:
    app, account, invoice = bank("billing")
    async with open_cluster(app, postgres_url, redis_url, namespace) as cluster:
        yield cluster, account, invoice


async def test_other_groups_go_on_and_a_turn_that_sends_to_the_closed_one_waits(
    postgres_url: str, redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_groups(postgres_url, redis_url, namespace) as (cluster, account, invoice):
        sender = await cluster.client()
        runner = await cluster.start()
        await sender.at(account, "a").invoice("first")
        waiting: list[asyncio.Task[int]] = []

        async def before_open() -> None:
            # Another entity is answered at once, the turn that sends to the closed group is not.
            waiting.append(asyncio.create_task(sender.at(account, "a").invoice("second"), name="ask"))
            assert await sender.at(account, "b").note("note") == 1

            async def dropped() -> bool:
                return "it sends to a shard group that is closed" in caplog.text

            await eventually_async(dropped, LONG, "a turn that was dropped")
            # Its handler does not run again and again: once more at most, where the runner did not know yet.
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                assert await sender.at(account, "b").note("note") > 1
            assert caplog.text.count("it sends to a shard group that is closed") <= 2
            assert not waiting[0].done()

        await reshard(cluster.settings, Change("billing", 3), before_open=before_open)
        assert await asyncio.wait_for(waiting[0], LONG) == 2
        await cluster.serving(runner, shards=SHARDS + 3)
        await cluster.all_answered(LONG)
        assert await sender.at(invoice, "i").add("third") == 3
        assert await sender.at(invoice, "i").read() == ["first", "second", "third"]


async def test_a_reshard_of_one_group_leaves_the_leases_of_the_others(
    postgres_url: str, redis_url: str, namespace: str
) -> None:
    """In the same runners, and while somebody calls them all the time."""
    async with two_groups(postgres_url, redis_url, namespace) as (cluster, account, invoice):
        sender = await cluster.client()
        one, other = await cluster.start("one"), await cluster.start("other")
        await cluster.serving(one, other, shards=2 * SHARDS)
        assert await sender.at(invoice, "i").add("first") == 1
        lives = [one.life, other.life]
        before = leases(cluster, "default")
        done = asyncio.Event()
        calls = asyncio.create_task(call_until(done, sender.at(account, "a")), name="calls")

        await reshard(cluster.settings, Change("billing", 3))

        await cluster.serving(one, other, shards=SHARDS + 3)
        done.set()
        numbers = await asyncio.wait_for(calls, LONG)
        assert numbers == list(range(1, len(numbers) + 1))
        assert leases(cluster, "default") == before
        assert [one.life, other.life] == lives
        assert await sender.at(invoice, "i").add("second") == 2


def leases(cluster: Cluster, group: str) -> list[tuple[object, ...]]:
    """Each shard with its epoch, its owner and when that acquired it."""
    return cluster.sql.execute(
        "SELECT shard_id, epoch, incarnation, acquired_at FROM entityq.shard"
        " JOIN entityq.shard_group USING (group_id) WHERE name = %s ORDER BY shard_id",
        [group],
    ).fetchall()


async def call_until(done: asyncio.Event, account: Any) -> list[int]:
    numbers: list[int] = []
    while not done.is_set():
        numbers.append(await account.note("note"))
    return numbers


async def test_a_new_group_ends_no_life(
    postgres_url: str, redis_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All runners would give up all shards at the same time, for a group that their code has no type of."""
    async with two_groups(postgres_url, redis_url, namespace) as (cluster, account, _):
        sender = await cluster.client()
        runner = await cluster.start()
        await cluster.serving(runner, shards=2 * SHARDS)
        life = runner.life
        newer = EntityQ("groups")

        @newer.entity(shard_group="new")
        class Letter(Entity):
            @message
            async def post(self) -> None: ...

        assert Letter.at("l").id == "l"
        caplog.set_level("INFO", "entityq")
        client = await Client.open(cluster.settings, cluster.servers, newer.definitions)
        await client.close()

        async def known() -> bool:
            return "facts.changed" in caplog.text

        await eventually_async(known, LONG, "the new group")
        assert await sender.at(account, "a").note("1") == 1
        assert runner.runner.life is life
        assert "leases.lost" not in caplog.text


async def test_a_type_that_moves_to_another_group(postgres_url: str, redis_url: str, namespace: str) -> None:
    """Into a new group, and back; whoever has the old code is refused, and told why."""
    async with two_groups(postgres_url, redis_url, namespace) as (cluster, account, invoice):
        sender = await cluster.client()
        runner = await cluster.start()
        for number in range(6):
            assert await sender.at(account, f"a{number}").note("1") == 1
            assert await sender.at(invoice, f"i{number}").add("1") == 1
        await runner.stop()
        await sender.at(invoice, "i1").add.send("2")
        new_app, _, _ = bank("slow")
        with pytest.raises(UnsafeConfiguration, match=r"`entityq reshard --type Invoice --group slow`"):
            await cluster.start("too early", app=new_app)

        await reshard(cluster.settings, Change("slow", type="Invoice"))

        with pytest.raises(UnsafeConfiguration, match=r"Invoice belongs to shard group slow in the cluster"):
            await cluster.start("too late")
        runner = await cluster.start("new code", app=new_app)
        # The client has the old code.
        assert await sender.at(invoice, "i1").add("3") == 3
        assert await sender.at(invoice, "i1").read() == ["1", "2", "3"]
        assert [await sender.at(invoice, f"i{number}").add("2") for number in (0, 2, 3)] == [2, 2, 2]
        assert [await sender.at(account, f"a{number}").note("2") for number in range(6)] == [2] * 6
        held = cluster.count(
            b"SELECT count(*) FROM entityq.outbox o JOIN entityq.shard s USING (shard_id)"
            b" JOIN entityq.entity_type t ON t.type = o.type AND t.group_id = s.group_id"
        )
        assert held == cluster.count(b"SELECT count(*) FROM entityq.outbox") == 6 + 6 + 2 + 3 + 6


async def test_a_runner_whose_type_was_moved_under_it_ends(
    postgres_url: str, redis_url: str, namespace: str
) -> None:
    async with two_groups(postgres_url, redis_url, namespace) as (cluster, _, _):
        runner = await cluster.start()
        await reshard(cluster.settings, Change("slow", type="Invoice"))
        await asyncio.wait([runner.task], timeout=LONG)
        with pytest.raises(UnsafeConfiguration, match=r"Invoice belongs to shard group slow"):
            runner.task.result()
