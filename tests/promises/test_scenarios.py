"""What breaks in production, one scenario each, on real servers (promises P1 to P4 and P6)."""

import asyncio
import os
import sys
from typing import Any

import psycopg
import pytest

from entityq import Entity, EntityQ, PrimaryKeyConflict, Receipt, message
from entityq.address import Address, entity_hash, signed64
from entityq.codec import Limits, pack
from entityq.primary_key import key_digest
from entityq.reply import Outcome, Reply
from tests.promises.cluster import Cluster, Running, Sending, most_queued
from tests.promises.journals import GATES, RUNS, Journal, Narrow
from tests.support.processes import CommandLine
from tests.support.servers import SHARDS, PrivateServers, flush
from tests.support.waiting import eventually_async


async def hold(sender: Sending, entity_id: str) -> Receipt[int]:
    """A turn of the entity that ends when its gate is opened."""
    receipt = await sender.at(Journal, entity_id).held.send("first")
    await GATES[entity_id].wait_for_handler()
    return receipt


# ----- P4: order


async def test_a_batch_is_answered_in_the_order_sent_after_a_takeover_with_redis_flushed(
    cluster: Cluster, redis_url: str
) -> None:
    sender = await cluster.client()
    journal = sender.at(Journal, "zma")
    first = await cluster.start("first")
    held = await hold(sender, "zma")
    receipts = await asyncio.gather(*(journal.write.send(key) for key in "zma"))
    await first.abort()
    flush(redis_url)
    GATES["zma"].opened.set()
    await cluster.start("second")
    assert await held == 1
    assert [await receipt for receipt in receipts] == [
        ["first", "z=1", "2"],
        ["first", "z=1", "m=1", "3"],
        ["z=1", "m=1", "a=1", "4"],
    ]


async def test_order_holds_where_a_stream_has_lost_the_middle_one_of_three(cluster: Cluster) -> None:
    # With a prefetch of 1 and a held turn, the runner reads no stream until the gate is opened.
    sender = await cluster.client()
    runner = await cluster.start(prefetch=1)
    await cluster.serving(runner, shards=SHARDS)
    await hold(sender, "middle")
    journal = sender.at(Journal, "middle")
    receipts = [await journal.append.send(text) for text in ("a", "b", "c")]
    await delete_entry(cluster, sender, "middle", receipts[1].request_id)
    GATES["middle"].opened.set()
    assert [await receipt for receipt in receipts] == [2, 3, 4]
    assert await journal.read() == ["first", "a", "b", "c"]


async def delete_entry(cluster: Cluster, sender: Sending, entity_id: str, request_id: int) -> None:
    facts = sender.client.facts
    row = cluster.sql.execute(
        "SELECT shard_id, envelope FROM entityq.outbox WHERE request_id = %s", [request_id]
    ).fetchone()
    assert row is not None
    stream = cluster.keys.stream(facts.shard(int(str(row[0]))))
    redis: Any = cluster.redis

    async def published() -> list[Any]:
        entries = await redis.xrange(stream)
        return [entry_id for entry_id, fields in entries if fields[b"e"] == row[1]]

    (entry_id,) = await eventually_async(published, what=f"the entry of {entity_id}")
    assert await redis.xdel(stream, entry_id) == 1


async def test_order_holds_when_redis_fails_over_to_stale_data(
    private_cluster: Cluster, private_servers: PrivateServers
) -> None:
    cluster = private_cluster
    sender = await cluster.client()
    runner = await cluster.start(prefetch=1)
    await cluster.serving(runner, shards=SHARDS)
    await hold(sender, "stale")
    journal = sender.at(Journal, "stale")
    receipts = [await journal.append.send("a")]
    redis: Any = cluster.redis
    await redis.save()
    receipts.append(await journal.append.send("b"))
    private_servers.valkey.kill()
    private_servers.valkey.start()
    receipts.append(await journal.append.send("c"))
    GATES["stale"].opened.set()
    assert [await receipt for receipt in receipts] == [2, 3, 4]


async def test_requests_of_one_turn_arrive_in_their_order_through_flushes(
    cluster: Cluster, redis_url: str
) -> None:
    sender = await cluster.client()
    runner = await cluster.start()
    await cluster.serving(runner, shards=SHARDS)
    for start in range(0, 60, 20):
        texts = [str(number) for number in range(start, start + 20)]
        await asyncio.gather(
            sender.at(Journal, "source").pass_on("target", texts[:10]),
            sender.at(Journal, "source").pass_on("target", texts[10:]),
        )
        flush(redis_url)
    await cluster.all_answered()
    assert await sender.at(Journal, "target").read() == [str(number) for number in range(60)]


async def test_order_holds_where_a_stream_was_trimmed(cluster: Cluster) -> None:
    cluster.app_settings(stream_length=100)
    sender = await cluster.client()
    runner = await cluster.start(prefetch=1)
    await cluster.serving(runner, shards=SHARDS)
    await hold(sender, "trimmed")
    receipts = await send_everywhere(sender, ["trimmed"], 600)
    redis: Any = cluster.redis
    lengths = [await redis.xlen(stream) for stream in await redis.keys("eq:*:stream:*")]
    assert 100 <= max(lengths) < 400
    GATES["trimmed"].opened.set()
    assert await asyncio.gather(*receipts) == list(range(2, 602))


async def test_what_the_last_turns_of_a_leaving_runner_send_needs_no_sweep(cluster: Cluster) -> None:
    cluster.app_settings(sweep_interval=3600.0)
    sender = await cluster.client()
    first = await cluster.start("first")
    receipt = await sender.at(Journal, "leaving").pass_on_late.send("elsewhere", "a")
    await GATES["leaving"].wait_for_handler()
    second = await cluster.start("second")
    stopping = asyncio.create_task(first.stop())
    # All but the one with the turn: "elsewhere" has its new owner, who has caught up.
    await cluster.serving(second, shards=SHARDS - 1)
    GATES["leaving"].opened.set()
    await receipt
    await stopping
    await cluster.all_answered(5.0)


# ----- P1: accepted means durable


async def test_a_producer_is_killed_between_insert_and_publish(
    cluster: Cluster, entityq: CommandLine, silent_redis: str
) -> None:
    runner = await cluster.start()
    await cluster.serving(runner, shards=SHARDS)
    command = [sys.executable, "-m", "tests.promises.producer", "killed", "a", "b", "c"]
    producer = entityq.spawn_program(command, env={"ENTITYQ_REDIS_URL": silent_redis})
    await asyncio.to_thread(producer.wait_for, r"(accepted \d+\s+){3}")
    producer.kill()
    await cluster.all_answered()
    sender = await cluster.client()
    assert await sender.at(Journal, "killed").read() == ["a", "b", "c"]


async def test_a_client_that_is_cut_off_from_redis_tells_the_owner_by_notify(
    cluster: Cluster, silent_redis: str
) -> None:
    sender = await cluster.client(redis_url=silent_redis)
    runner = await cluster.start(sweep_interval=3600.0)
    await cluster.serving(runner, shards=SHARDS)
    journal = sender.at(Journal, "cut off")
    receipts = [await journal.append.send(text) for text in ("a", "b")]
    assert [await receipt for receipt in receipts] == [1, 2]
    assert await journal.append("c") == 3


async def sent_in_order(journal: Journal, texts: list[str]) -> list[Receipt[int]]:
    return [await journal.append.send(text) for text in texts]


async def send_everywhere(sender: Sending, entities: list[str], count: int) -> list[Receipt[int]]:
    """`count` requests to each entity, one after the other; all entities at once."""
    texts = [str(number) for number in range(count)]
    sent = await asyncio.gather(*(sent_in_order(sender.at(Journal, name), texts) for name in entities))
    return [receipt for receipts in sent for receipt in receipts]


async def require_all(sender: Sending, receipts: list[Receipt[int]], entities: list[str], count: int) -> None:
    """Every request is answered, with the place in which it was sent; none was applied twice."""
    assert await asyncio.gather(*receipts) == list(range(1, count + 1)) * len(entities)
    for name in entities:
        assert await sender.at(Journal, name).read() == [str(number) for number in range(count)]


async def test_flushes_of_redis_while_requests_are_sent(cluster: Cluster, redis_url: str) -> None:
    sender = await cluster.client()
    await cluster.start("one")
    await cluster.start("two")
    entities = [f"flushed-{number}" for number in range(50)]
    count = 200 if "SOAK_EXAMPLES" in os.environ else 40
    sending = asyncio.create_task(send_everywhere(sender, entities, count))
    flushes = 0
    while not sending.done():
        flush(redis_url)
        flushes += 1
        await asyncio.wait([sending], timeout=0.05)
    assert flushes > 3
    await require_all(sender, await sending, entities, count)


async def test_a_flush_is_noticed_without_a_sweep(cluster: Cluster, redis_url: str) -> None:
    cluster.app_settings(sweep_interval=3600.0)
    sender = await cluster.client()
    runner = await cluster.start(prefetch=1)
    await cluster.serving(runner, shards=SHARDS)
    await hold(sender, "unread")
    receipts = await send_everywhere(sender, ["unread"], 20)
    flush(redis_url)
    GATES["unread"].opened.set()
    assert await asyncio.gather(*receipts) == list(range(2, 22))


async def test_redis_is_down_from_the_start(
    private_cluster: Cluster, private_servers: PrivateServers
) -> None:
    private_servers.valkey.kill()
    sender = await private_cluster.client()
    await private_cluster.start()
    entities = [f"dark-{number}" for number in range(10)]
    receipts = await send_everywhere(sender, entities, 10)
    assert await asyncio.gather(*receipts) == list(range(1, 11)) * 10
    private_servers.valkey.start()

    async def read() -> list[str]:
        return await sender.at(Journal, "dark-0").read.options(timeout=5)()

    assert await read() == [str(number) for number in range(10)]


async def test_redis_is_killed_and_comes_back_empty_while_requests_are_sent(
    private_cluster: Cluster, private_servers: PrivateServers
) -> None:
    sender = await private_cluster.client()
    runner = await private_cluster.start()
    await private_cluster.serving(runner, shards=SHARDS)
    entities = [f"dusk-{number}" for number in range(10)]
    receipts = await send_everywhere(sender, entities, 5)
    sending = asyncio.create_task(send_everywhere(sender, entities, 20))
    private_servers.valkey.kill()
    during = await sending
    private_servers.valkey.start()
    after = await send_everywhere(sender, entities, 5)
    answers = await asyncio.gather(*receipts, *during, *after)
    assert sorted(answers) == sorted(list(range(1, 31)) * 10)
    assert list(answers[50:250]) == list(range(6, 26)) * 10


async def test_postgres_is_killed_and_comes_back_while_requests_are_sent(
    private_cluster: Cluster, private_servers: PrivateServers
) -> None:
    sender = await private_cluster.client()
    runner = await private_cluster.start()
    await private_cluster.serving(runner, shards=SHARDS)
    entities = [f"crash-{number}" for number in range(10)]
    sending = asyncio.create_task(send_everywhere(sender, entities, 30))
    await eventually_async(lambda: asyncio.to_thread(lambda: private_cluster.pending or sending.done()), 20)
    await asyncio.to_thread(private_servers.postgres.kill)
    await asyncio.to_thread(private_servers.postgres.start)
    receipts = await asyncio.wait_for(sending, 60)
    assert await asyncio.gather(*receipts) == list(range(1, 31)) * 10


async def test_runners_are_stopped_and_killed_in_the_middle_of_a_backlog(cluster: Cluster) -> None:
    sender = await cluster.client()
    entities = [f"backlog-{number}" for number in range(40)]
    receipts = await send_everywhere(sender, entities, 30)
    last = cluster.pending
    assert last == 1200
    for number in range(4):
        runner = await cluster.start(f"number {number}", max_turns=4, prefetch=50)
        await fewer_pending(cluster, last)
        await (runner.stop() if number % 2 else runner.abort())
        last = cluster.pending
    assert last > 0, "nothing was left to take over"
    await cluster.start("last")
    await require_all(sender, receipts, entities, 30)


async def fewer_pending(cluster: Cluster, than: int) -> None:
    async def fewer() -> bool:
        return cluster.pending < than

    await eventually_async(fewer)


# ----- P2: effects once


async def test_a_request_of_a_batch_is_answered_meanwhile(cluster: Cluster) -> None:
    sender = await cluster.client()
    await cluster.start()
    names = [f"meanwhile-{number}" for number in range(5)]
    receipts = [await hold(sender, name) for name in names]
    loser = receipts[2]
    answer = Reply(loser.request_id, Outcome.SUCCESS, "", pack(99, Limits(), "reply"))
    cluster.sql.execute(
        "WITH gone AS (DELETE FROM entityq.pending WHERE request_id = %(id)s RETURNING request_id)"
        " UPDATE entityq.outbox o SET reply = %(reply)s FROM gone WHERE o.request_id = gone.request_id",
        {"id": loser.request_id, "reply": answer.encode()},
    )
    for name in names:
        GATES[name].opened.set()
    assert [await receipt for receipt in receipts] == [1, 1, 99, 1, 1]
    for name in names:
        first = [] if name == names[2] else ["first"]
        assert await sender.at(Journal, name).append("second") == len(first) + 1
        assert await sender.at(Journal, name).read() == [*first, "second"]


async def test_a_state_that_was_changed_meanwhile_is_not_overwritten(cluster: Cluster) -> None:
    sender = await cluster.client()
    await cluster.start()
    for name, texts in (("mine", ["a"]), ("theirs", ["x", "y"])):
        for text in texts:
            await sender.at(Journal, name).append(text)
    receipt = await hold(sender, "mine")
    cluster.sql.execute(
        "UPDATE entityq.entity mine SET version = mine.version + 1, state = theirs.state"
        " FROM entityq.entity theirs WHERE mine.entity_id = 'mine' AND theirs.entity_id = 'theirs'"
    )
    GATES["mine"].opened.set()
    assert await receipt == 3
    assert await sender.at(Journal, "mine").read() == ["x", "y", "first"]


async def test_a_thread_ends_after_its_shard_was_given_away_and_taken_again(cluster: Cluster) -> None:
    sender = await cluster.client()
    receipt = await hold_through_two_moves(cluster, sender, "thread")
    assert RUNS["thread", "first"] == 3
    GATES["thread"].opened.set()  # three threads return; one of them may commit
    assert await receipt == 1
    assert await sender.at(Journal, "thread").append("second") == 2
    assert await sender.at(Journal, "thread").read() == ["first", "second"]


async def hold_through_two_moves(cluster: Cluster, sender: Sending, name: str) -> Receipt[int]:
    """The shard is with its first owner again; the turn that it abandoned has not ended."""
    first = await cluster.start("first", termination_time=0.2)
    receipt = await hold(sender, name)
    second = await heavy_runner(cluster, first)
    await GATES[name].wait_for_handler()
    await second.stop()
    await GATES[name].wait_for_handler()
    await cluster.serving(first, shards=SHARDS)
    return receipt


async def heavy_runner(cluster: Cluster, other: Running) -> Running:
    """A second runner, to which the assignment gives every shard."""
    second = await cluster.start("second", weight=1e9, termination_time=0.2)
    await cluster.serving(second, shards=SHARDS)
    assert not len(other.life.shards)
    return second


async def test_a_turn_that_ignores_its_cancellation_disturbs_no_later_lease(cluster: Cluster) -> None:
    sender = await cluster.client()
    name, text = "stubborn", "once"
    first = await cluster.start("first", termination_time=0.2)
    receipt = await sender.at(Journal, name).stubborn.send(text)
    gates = [GATES[f"{name} {run}"] for run in (1, 2, 3)]
    await gates[0].wait_for_handler()
    second = await heavy_runner(cluster, first)
    await gates[1].wait_for_handler()
    stopping = asyncio.create_task(second.stop())
    await gates[2].wait_for_handler()
    gates[1].opened.set()
    await stopping
    await cluster.serving(first, shards=SHARDS)
    gates[0].opened.set()  # the first owner's first turn, of a lease that is gone
    assert await sender.at(Journal, "neighbour").append("a") == 1
    await cluster.serving(first, shards=SHARDS)
    assert cluster.pending == 1
    gates[2].opened.set()
    assert await receipt == 1
    assert await sender.at(Journal, name).append("second") == 2
    assert RUNS[name, text] == 3


# ----- P3: same key, same reply


class Versions:
    """Two versions of one app's code: the newer one has an argument more."""

    def __init__(self) -> None:
        self.old, self.new = EntityQ("promises"), EntityQ("promises")

        @self.old.entity(type="Till")
        class OldTill(Entity):
            total: int = 0

            @message(primary_key="key")
            async def pay(self, amount: int, key: str) -> int:
                self.total += amount
                return self.total

        @self.new.entity(type="Till")
        class NewTill(Entity):
            total: int = 0

            @message(primary_key="key")
            async def pay(self, amount: int, key: str, currency: str = "EUR", tags: list[str] = []) -> int:  # noqa: B006
                self.total += amount
                return self.total

        self.old_till, self.new_till = OldTill, NewTill


async def test_an_added_optional_argument_makes_no_conflict_of_a_retry(cluster: Cluster) -> None:
    versions = Versions()
    cluster.app = versions.old
    sender = await cluster.client()
    old, new = sender.at(versions.old_till, "t"), sender.at(versions.new_till, "t")
    await cluster.start(app=versions.new)
    assert await old.pay(10, "k") == 10
    assert await new.pay(10, "k") == 10
    assert await new.pay(10, "k", "EUR") == 10
    with pytest.raises(PrimaryKeyConflict):
        await new.pay(10, "k", "USD")
    assert await new.pay(5, "k2", "USD") == 15
    with pytest.raises(PrimaryKeyConflict):
        await old.pay(5, "k2")


async def test_ten_and_ten_point_zero_are_one_int(cluster: Cluster) -> None:
    sender = await cluster.client()
    await cluster.start()
    journal: Any = sender.at(Journal, "ten")
    assert await journal.write("k", 10) == ["k=10", "1"]
    for equal in (10.0, "10"):
        assert await journal.write("k", equal) == ["k=10", "1"]
    with pytest.raises(PrimaryKeyConflict):
        await journal.write("k", 11)


async def test_two_clients_send_one_key_at_once(cluster: Cluster) -> None:
    senders = [await cluster.client() for _ in range(2)]
    await cluster.start()
    journals = [sender.at(Journal, "same") for sender in senders]
    replies = await asyncio.gather(*(journal.write("k") for journal in journals * 20))
    assert all(reply == ["k=1", "1"] for reply in replies)
    assert RUNS["same", "k"] == 1
    assert cluster.count(b"SELECT count(*) FROM entityq.outbox WHERE entity_id = 'same'") == 1
    receipts = [await journal.write.send("k") for journal in journals]
    assert all(receipt.duplicate for receipt in receipts)
    assert len({receipt.request_id for receipt in receipts}) == 1


@pytest.mark.parametrize("end", ["rollback", "commit"])
async def test_a_key_in_somebody_elses_open_transaction_holds_up_nobody_else(
    cluster: Cluster, postgres_url: str, namespace: str, end: str
) -> None:
    sender = await cluster.client()
    await cluster.start()
    journal = sender.at(Journal, "open")
    await journal.append("warm")
    with psycopg.connect(postgres_url) as other:
        insert_key(other, namespace, Address("Journal", "open"), "k")
        waiting = asyncio.create_task(journal.write("k"))
        others = [sender.at(Journal, f"open-{number}").append("a") for number in range(50)]
        async with asyncio.timeout(5):
            assert await asyncio.gather(*others) == [1] * 50
            assert await journal.append("b") == 2
        assert not waiting.done()
        other.rollback() if end == "rollback" else other.commit()
    if end == "rollback":
        assert await waiting == ["warm", "b", "k=1", "3"]
    else:
        with pytest.raises(PrimaryKeyConflict):
            await waiting


def insert_key(connection: Any, namespace: str, address: Address, key: str) -> None:
    """The row of another payload with that key, not committed."""
    connection.execute(
        "INSERT INTO entityq.outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message,"
        " key_digest, payload_hash, envelope) VALUES (1, 0, 0, %s, %s, %s, 'write', %s, '', '')",
        [signed64(entity_hash(address.id)), *_parts(address), key_digest(namespace, address, "write", key)],
    )


def _parts(address: Address) -> tuple[str, str]:
    return address.type, address.id


# ----- P6: bounded


async def test_a_mailbox_that_overflows_keeps_its_order_and_stops_no_neighbour(cluster: Cluster) -> None:
    sender = await cluster.client()
    runner = await cluster.start()
    narrow = sender.at(Narrow, "narrow")
    held = await narrow.held.send("first")
    await GATES["narrow"].wait_for_handler()
    receipts = [await narrow.append.send(str(number)) for number in range(200)]
    neighbours = await asyncio.gather(
        *(sender.at(Narrow, f"neighbour-{number}").append("a") for number in range(20)),
    )
    assert neighbours == [1] * 20
    fullest = most_queued(runner)
    assert fullest == 5
    GATES["narrow"].opened.set()
    # More comes by the stream while the mailbox is fed from the outbox.
    for number in range(200, 400):
        receipts.append(await narrow.append.send(str(number)))
        fullest = max(fullest, most_queued(runner))
    assert await held == 1
    assert [await receipt for receipt in receipts] == list(range(2, 402))
    assert fullest == 5

    async def served_from_the_stream() -> bool:
        return len(runner.life.deferrals) == 0

    await eventually_async(served_from_the_stream)
    assert await narrow.append("after") == 402


async def test_a_backlog_stays_in_postgres(cluster: Cluster) -> None:
    sender = await cluster.client()
    entities = [f"many-{number}" for number in range(300)]
    receipts = await send_everywhere(sender, entities, 10)
    runner = await cluster.start(prefetch=100)
    life, most = runner.life, 0
    answers = asyncio.gather(*receipts)
    while not answers.done():
        most = max(most, len(life.prefetch))
        await asyncio.sleep(0)
    assert answers.result() == list(range(1, 11)) * 300
    assert 0 < most <= 100
    assert len(life.prefetch) == 0
