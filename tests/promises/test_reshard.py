"""A change of the number of shards, or of a type's group, while clients and runners live."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from entityq import PersistenceError, SendTimeout
from entityq.address import Shard, entity_hash, lock_class, shard_number
from entityq.entry import pack_order
from entityq.errors import Accepted, EntityQError
from entityq.postgres.facts import facts_channel
from entityq.postgres.overview import Change
from tests.promises.cluster import Cluster
from tests.promises.journals import Journal
from tests.promises.resharding import reshard
from tests.support.servers import SCHEMA, SHARDS, connected
from tests.support.waiting import eventually_async

LONG = 30.0
COUNT = b"SELECT count(*) FROM entityq.outbox"


def epochs(cluster: Cluster) -> list[int]:
    rows = cluster.sql.execute("SELECT epoch FROM entityq.shard").fetchall()
    return [int(str(row[0])) for row in rows]


def open_groups(cluster: Cluster) -> Counter[bool]:
    return Counter(bool(row[0]) for row in cluster.sql.execute("SELECT open FROM entityq.shard_group"))


async def until_closed(cluster: Cluster) -> None:
    async def closed() -> bool:
        return open_groups(cluster)[False] > 0

    await eventually_async(closed, LONG, "a closed group")


async def test_growing_and_shrinking_while_a_runner_and_a_client_live(cluster: Cluster) -> None:
    """Neither is restarted: both learn the new facts by themselves."""
    sender = await cluster.client()
    runner = await cluster.start()
    journals = [sender.at(Journal, f"journal {number}") for number in range(12)]
    first = [await journal.write(f"key {journal.id}") for journal in journals]
    for round_, shards in enumerate((41, 3, SHARDS)):
        before = max(epochs(cluster))
        await asyncio.gather(*(journal.append.send(f"{round_}") for journal in journals))

        await reshard(cluster.settings, Change("default", shards))

        assert len(epochs(cluster)) == shards
        await cluster.serving(runner, shards=shards)
        assert min(epochs(cluster)) > before + 1, "epochs start above all old ones"
        # Accepted before, answered once; the state is what it was.
        assert [await journal.append("after") for journal in journals] == [3 + 2 * round_] * len(journals)
        # The key is known, and the reply the first one's, whichever shard it is in now.
        assert [await journal.write(f"key {journal.id}") for journal in journals] == first
        for journal in journals:
            assert await journal.read() == [f"key {journal.id}=1", *_rounds(round_)]
    assert cluster.pending == 0


def _rounds(last: int) -> list[str]:
    return [text for round_ in range(last + 1) for text in (str(round_), "after")]


async def test_what_is_unanswered_is_answered_in_its_order(cluster: Cluster) -> None:
    sender = await cluster.client()
    journals = [sender.at(Journal, f"journal {number}") for number in range(9)]
    for text in range(8):
        await asyncio.gather(*(journal.append.send(str(text)) for journal in journals))
    assert cluster.pending == 72

    await reshard(cluster.settings, Change("default", 5))
    await reshard(cluster.settings, Change("default", 29))

    assert cluster.pending == 72
    runner = await cluster.start()
    await cluster.serving(runner, shards=29)
    await cluster.all_answered(LONG)
    for journal in journals:
        assert await journal.read() == [str(text) for text in range(8)]


async def test_under_load_every_key_is_applied_once_and_in_order(cluster: Cluster) -> None:
    """Two runners, two clients, four reshards; a send that was not accepted is sent again."""
    for number in range(2):
        await cluster.start(f"runner {number}")
    senders = [await cluster.client() for _ in range(2)]
    ended = asyncio.Event()

    async def produce(place: int) -> list[str]:
        journal, keys = senders[place % 2].at(Journal, f"journal {place}"), list[str]()
        while not ended.is_set():
            keys.append(f"{len(keys)}")
            while True:
                try:
                    await (journal.write if len(keys) % 5 == 0 else journal.write.send)(keys[-1])
                    break
                except (PersistenceError, SendTimeout):
                    continue
        return keys

    producers = [asyncio.create_task(produce(place), name=f"producer {place}") for place in range(6)]
    for shards in (37, 2, 64, SHARDS):
        stored = cluster.count(COUNT)

        async def more(stored: int = stored) -> bool:
            return cluster.count(COUNT) > stored + 60

        await eventually_async(more, LONG, "more requests")
        await reshard(cluster.settings, Change("default", shards), batch=200)
    ended.set()
    sent = await asyncio.wait_for(asyncio.gather(*producers), LONG)
    await cluster.all_answered(LONG)
    for place, keys in enumerate(sent):
        journal = senders[0].at(Journal, f"journal {place}")
        assert await journal.read() == [f"{key}=1" for key in keys]


async def test_meanwhile_nothing_is_accepted_and_afterwards_everything(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    sender = await cluster.client()
    runner = await cluster.start()
    journal = sender.at(Journal, "journal")
    known = await journal.write("known")
    moved, proceed = asyncio.Event(), asyncio.Event()

    async def before_open() -> None:
        moved.set()
        await proceed.wait()

    task = asyncio.create_task(
        reshard(cluster.settings, Change("default", 7), before_open=before_open), name="reshard"
    )
    await asyncio.wait_for(moved.wait(), LONG)
    # A repeat of what was answered gets its reply; nobody can say where an entity is.
    assert await journal.write("known") == known
    with pytest.raises(PersistenceError, match=r"shard group default is closed: `entityq reshard`") as caught:
        await journal.append("refused")
    assert caught.value.accepted is Accepted.NO
    with pytest.raises(PersistenceError, match="is closed"):
        await sender.client.status(journal.__address__)
    late = asyncio.create_task(journal.append("late"), name="late send")
    proceed.set()
    await asyncio.wait_for(task, LONG)
    assert await asyncio.wait_for(late, LONG) == 2
    await cluster.serving(runner, shards=7)
    assert await journal.read() == ["known=1", "late"]


async def test_what_is_sent_meanwhile_is_accepted_in_the_order_of_sending(cluster: Cluster) -> None:
    sender = await cluster.client()
    journals = [sender.at(Journal, f"journal {number}") for number in range(3)]
    await journals[0].append.send("0")
    sends: list[asyncio.Task[Any]] = []

    async def before_open() -> None:
        for text in range(1, 60):
            receipt = journals[text % 3].append.send(str(text))
            sends.append(asyncio.create_task(_sent(receipt), name=f"send {text}"))
            if text % 10 == 0:
                await asyncio.sleep(0.02)

    await reshard(cluster.settings, Change("default", 5), before_open=before_open)
    late = [journals[text % 3].append.send(str(text)) for text in range(60, 90)]
    await asyncio.wait_for(asyncio.gather(*sends, *late), LONG)
    runner = await cluster.start()
    await cluster.serving(runner, shards=5)
    await cluster.all_answered(LONG)
    for number, journal in enumerate(journals):
        assert await journal.read() == [str(text) for text in range(number, 90, 3) if text or number == 0]


async def _sent(receipt: Awaitable[Any]) -> Any:
    return await receipt


async def test_who_waits_for_a_closed_group_fails_in_time_and_is_told(cluster: Cluster) -> None:
    sender = await cluster.client()
    journal = sender.at(Journal, "journal")
    await journal.append.send("0")
    cluster.sql.execute("UPDATE entityq.shard_group SET open = false")
    sends = [journal.append.options(timeout=20).send(str(text)) for text in range(1, 200)]
    given_up = asyncio.create_task(_sent(journal.append.options(timeout=0.5).send("given up")), name="short")
    outcomes = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), LONG)
    assert {type(outcome).__name__ for outcome in outcomes} == {"GroupClosed"}
    with pytest.raises((PersistenceError, SendTimeout)) as caught:
        await given_up
    assert caught.value.accepted is Accepted.NO
    cluster.sql.execute("UPDATE entityq.shard_group SET open = true")
    await journal.append.send("1")
    assert cluster.pending == 2


async def test_closing_opening_and_undoing_are_told(cluster: Cluster) -> None:
    """Runners wait for the word: unasked, they look every ten seconds."""
    await cluster.client()
    class_ = lock_class(SCHEMA, cluster.settings.namespace, "shard", "default")
    with connected(cluster.servers.postgres_url) as listener:
        listener.execute(SQL("LISTEN {}").format(Identifier(facts_channel(cluster.settings.namespace))))

        def told() -> int:
            return len(list(listener.notifies(timeout=0.1)))

        await reshard(cluster.settings, Change("default", 5))
        assert told() == 2
        listener.execute("SELECT pg_advisory_lock(%s::integer, 3)", [class_])
        with pytest.raises(EntityQError, match="Shards are still held"):
            await reshard(cluster.settings, Change("default", 7), wait=0.1)
        assert told() == 2


async def test_one_that_was_overtaken_by_another_run_changes_nothing_more(cluster: Cluster) -> None:
    """The lock against a second run and the statements that move rows are of one session, and end together."""
    sender = await cluster.client()
    journal = sender.at(Journal, "journal")
    await journal.append.send("first")
    class_ = lock_class(SCHEMA, cluster.settings.namespace, "reshard", "")

    async def overtaken() -> None:
        cluster.sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 0"
            " AND classid = (%s::bigint)::oid",
            [class_ & 0xFFFF_FFFF],
        )
        await reshard(cluster.settings, Change("default", 5))
        await journal.append.send("second")

    with pytest.raises(psycopg.OperationalError):
        await reshard(cluster.settings, Change("default", 5), before_open=overtaken)
    assert open_groups(cluster) == {True: 1}
    assert len(epochs(cluster)) == 5
    runner = await cluster.start()
    await cluster.serving(runner, shards=5)
    assert await journal.append("third") == 3


async def test_the_client_publishes_to_the_new_shards_stream(cluster: Cluster) -> None:
    """The first send after it meets an unknown shard id; a later one is in the stream again."""
    sender = await cluster.client()
    journal = sender.at(Journal, "journal")
    await journal.append.send("before")
    await reshard(cluster.settings, Change("default", 31))
    stream = cluster.keys.stream(Shard("default", shard_number(entity_hash("journal"), 31)))
    redis: Any = cluster.redis

    async def published() -> bool:
        await journal.append.send("after")
        return int(await redis.xlen(stream)) > 0

    await eventually_async(published, LONG, "an entry in the new stream")


async def test_a_client_that_sends_only_volatile_messages_learns_it_too(cluster: Cluster) -> None:
    """From the refusal of the shard's present owner, or because nobody reads a shard that is gone."""
    reader, sender = await cluster.client(), await cluster.client()
    runner = await cluster.start()
    journals = [f"journal {number}" for number in range(8)]
    for journal in journals:
        await sender.at(Journal, journal).append("first")
        assert await reader.at(Journal, journal).read() == ["first"]
    await reshard(cluster.settings, Change("default", 53))
    await cluster.serving(runner, shards=53)
    for journal in journals:
        assert await reader.at(Journal, journal).read() == ["first"], "read in a shard that is not its own"
    await reshard(cluster.settings, Change("default", 2))
    await cluster.serving(runner, shards=2)

    async def read() -> bool:
        try:
            found = [await reader.at(Journal, name).read.options(timeout=2)() for name in journals]
        except SendTimeout:
            return False
        return found == [["first"]] * len(journals)

    await eventually_async(read, LONG, "the facts")


async def test_an_entry_in_a_shard_that_is_not_its_entitys_is_not_run(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """From a stream that was not deleted, or by a client with old facts: its state is elsewhere."""
    caplog.set_level("INFO")
    sender = await cluster.client()
    runner = await cluster.start()
    await cluster.serving(runner, shards=SHARDS)
    journal = sender.at(Journal, "journal")
    assert await journal.append("first") == 1
    number = shard_number(entity_hash("journal"), SHARDS)
    wrong = cluster.keys.stream(Shard("default", (number + 1) % SHARDS))
    redis: Any = cluster.redis
    row = cluster.sql.execute("SELECT envelope FROM entityq.outbox").fetchone()
    assert row is not None and isinstance(row[0], bytes)
    await redis.xadd(wrong, {b"e": row[0], b"o": pack_order(4711, 1, 1)})

    async def dropped() -> bool:
        return "stream.entry_misplaced" in caplog.text and not await redis.xlen(wrong)

    await eventually_async(dropped, LONG, "the entry dropped")
    assert "turn.dropped" not in caplog.text, "its handler was run"
    assert await journal.append("second") == 2


async def test_a_runner_that_starts_meanwhile_waits(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    sender = await cluster.client()
    journal = sender.at(Journal, "journal")
    await journal.append.send("first")
    starting: list[asyncio.Task[Any]] = []

    async def before_open() -> None:
        starting.append(asyncio.create_task(cluster.start("late"), name="start"))

        async def waits() -> bool:
            return "runner.groups_closed" in caplog.text

        await eventually_async(waits, LONG, "a runner that waits")

    await reshard(cluster.settings, Change("default", 5), before_open=before_open)
    runner = await asyncio.wait_for(starting[0], LONG)
    await cluster.serving(runner, shards=5)
    assert await journal.append("second") == 2


async def test_shards_that_are_held_call_it_off(cluster: Cluster) -> None:
    sender = await cluster.client()
    journal = sender.at(Journal, "journal")
    with connected(cluster.servers.postgres_url) as stranger:
        class_ = lock_class(SCHEMA, cluster.settings.namespace, "shard", "default")
        stranger.execute("SELECT pg_advisory_lock(%s::integer, 3)", [class_])
        runner = await cluster.start()
        await cluster.serving(runner, shards=SHARDS - 1)
        held = r"Shards are still held after 8 s: by tests \(1, pid \d+\)"
        with pytest.raises(EntityQError, match=held) as caught:
            await reshard(cluster.settings, Change("default", 5), wait=8.0)
        assert "Stop the workers of shard group default" in caught.value.advice
        assert open_groups(cluster) == {True: 1}
    await cluster.serving(runner, shards=SHARDS)
    assert await journal.append("first") == 1
    assert cluster.count(b"SELECT count(*) FROM entityq.reshard_group") == 0


async def test_a_transaction_that_may_not_have_seen_the_closing_is_waited_for(cluster: Cluster) -> None:
    """It began, and has inserted, before; what it has inserted is moved like everything else."""
    sender = await cluster.client()
    journal = sender.at(Journal, "journal")
    await journal.append.send("first")
    insert = (
        "WITH o AS (INSERT INTO entityq.outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message,"
        " payload_hash, envelope) SELECT 1, shard_id, nextval('entityq.outbox_seq'), entity_hash, type, entity_id,"
        " message, payload_hash, envelope FROM entityq.outbox RETURNING *)"
        " INSERT INTO entityq.pending (shard_id, seq, request_id, entity_hash)"
        " SELECT shard_id, seq, request_id, entity_hash FROM o"
    )
    with connected(cluster.servers.postgres_url) as caller, caller.transaction():
        caller.execute(insert)
        with pytest.raises(
            EntityQError, match=r"written to the outbox has not ended within 1 s: pid \d+ \(tests\)"
        ):
            await reshard(cluster.settings, Change("default", 5), wait=1.0)
        assert open_groups(cluster) == {True: 1}
        task = asyncio.create_task(reshard(cluster.settings, Change("default", 5)), name="reshard")
        await until_closed(cluster)
        assert not task.done()
    await asyncio.wait_for(task, LONG)
    assert cluster.pending == 2
    assert cluster.count(b"SELECT count(*) FROM entityq.outbox o JOIN entityq.shard s USING (shard_id)") == 2
