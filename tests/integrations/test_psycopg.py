"""What can come between a request in the caller's transaction and its commit, and what it may meet there."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.errors import SerializationFailure
from psycopg.rows import dict_row

from entityq import (
    Accepted,
    EntityQ,
    EntityQError,
    MailboxFull,
    MalformedMessage,
    PayloadTooLarge,
    PersistenceError,
    SendTimeout,
    testing,
)
from entityq.client.many import MAX_MANY
from entityq.integrations.psycopg import send, send_many
from entityq.postgres.connect import connect_lease
from entityq.postgres.outbox import unpublished_channel
from entityq.postgres.overview import Change
from entityq.postgres.reshard import Resharding
from tests.integrations.transactions import Psycopg
from tests.support.live import LiveCluster, live_cluster
from tests.support.pgbouncer import listen_on_tcp, pgbouncer
from tests.support.probe import Probe
from tests.support.processes import CommandLine
from tests.support.servers import SCHEMA, SHARDS, PrivateServers
from tests.support.waiting import eventually_async


@pytest.fixture
async def probe(cluster: LiveCluster, app: EntityQ) -> type[Probe]:
    """Registered in the cluster, by a first request."""
    probe = cluster.actor(app, Probe)
    await probe.at("first").note.send("first")
    return probe


@pytest.fixture
async def one(postgres_url: str) -> AsyncIterator[Psycopg]:
    transaction = Psycopg(postgres_url)
    yield transaction
    await transaction.close()


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[Psycopg]:
    transaction = Psycopg(postgres_url)
    yield transaction
    await transaction.close()


# ----- before the commit


async def test_a_process_that_is_killed_before_its_commit_has_sent_nothing(
    probe: type[Probe], cluster: LiveCluster, entityq: CommandLine
) -> None:
    program = entityq.spawn_program([sys.executable, "-m", "tests.integrations.committing"])
    await asyncio.to_thread(program.wait_for, "sent")
    program.kill()
    sessions = "SELECT 1 FROM pg_locks WHERE relation = 'outbox'::regclass AND mode = 'RowExclusiveLock'"

    async def ended() -> bool:
        return not await cluster.rows(sessions)

    await eventually_async(ended)
    assert await cluster.requests() == 1


async def test_a_receipt_before_the_commit_says_what_is_missing(probe: type[Probe], one: Psycopg) -> None:
    receipt = await one.send(probe.at("a").note.options(timeout=0.2).request("x"))
    with pytest.raises(SendTimeout, match="its transaction has not committed") as silence:
        await receipt
    assert silence.value.accepted is Accepted.UNKNOWN
    await one.commit()
    with pytest.raises(EntityQError, match="no live runner serves") as silence_after:
        await receipt
    assert silence_after.value.accepted is Accepted.YES


async def test_sync_code_waits_for_the_reply_with_get(
    cluster: LiveCluster, app: EntityQ, probe: type[Probe], one: Psycopg
) -> None:
    await cluster.start(app)
    receipt = await one.send(probe.at("a").note.request("x"))
    await one.commit()
    try:
        assert await asyncio.to_thread(receipt.get, 10) == 1
    finally:
        await asyncio.to_thread(app.close_blocking)


# ----- keys that another transaction is inserting


@pytest.mark.parametrize(("ends", "duplicate"), [("commit", True), ("rollback", False)])
async def test_a_key_of_another_transaction_is_waited_for(
    probe: type[Probe], one: Psycopg, other: Psycopg, ends: str, *, duplicate: bool
) -> None:
    first = await one.send(probe.at("a").add.request(1, "k"))
    waiting = asyncio.ensure_future(other.send(probe.at("a").add.request(1, "k")))
    await one.execute("SELECT 1")
    assert not waiting.done()
    await getattr(one, ends)()
    second = await asyncio.wait_for(waiting, 10)
    assert second.duplicate is duplicate
    assert (second.request_id == first.request_id) is duplicate
    await other.commit()


# ----- one snapshot for the whole transaction


async def repeatable_read(transaction: Psycopg) -> None:
    """Its snapshot is taken by the first statement."""
    await transaction.rollback()
    transaction.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    await transaction.execute("SELECT 1")


async def test_repeatable_read_sees_the_keys_of_its_snapshot_and_its_own(
    probe: type[Probe], one: Psycopg
) -> None:
    known = await probe.at("a").add.send(1, "known")
    await repeatable_read(one)
    new = await one.send(probe.at("a").add.request(1, "new"))
    sent = await one.send_many([probe.at("a").add.request(1, "known"), probe.at("a").add.request(1, "new")])
    assert [each.receipt.request_id for each in sent] == [known.request_id, new.request_id]
    await one.commit()


async def test_repeatable_read_fails_on_a_key_that_came_after_its_snapshot(
    probe: type[Probe], one: Psycopg
) -> None:
    await repeatable_read(one)
    await probe.at("a").add.send(1, "k")
    with pytest.raises(SerializationFailure):
        await one.send(probe.at("a").add.request(1, "k"))
    await one.rollback()
    assert (await one.send(probe.at("a").add.request(1, "k"))).duplicate


async def reshard(postgres_url: str, namespace: str, wait: float) -> None:
    """One shard more."""

    async def forget(_: object) -> None:
        return None

    connection = await connect_lease(postgres_url, schema=SCHEMA)
    try:
        resharding = Resharding(
            connection,
            schema=SCHEMA,
            namespace=namespace,
            say=lambda _: None,
            forget_streams=forget,
            wait=wait,
        )
        assert await resharding.run(Change("default", shards=SHARDS + 1))
    finally:
        await connection.close()


async def test_repeatable_read_fails_after_a_reshard_that_its_snapshot_does_not_show(
    probe: type[Probe], cluster: LiveCluster, one: Psycopg, postgres_url: str
) -> None:
    await repeatable_read(one)
    await reshard(postgres_url, cluster.namespace, 5.0)
    with pytest.raises(SerializationFailure):
        await one.send(probe.at("a").note.request("x"))
    await one.rollback()
    await one.execute("SELECT 1")
    await one.send(probe.at("a").note.request("x"))
    await one.commit()
    assert await cluster.requests() == 2


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
async def test_a_reshard_waits_for_a_transaction_that_has_sent(
    probe: type[Probe], cluster: LiveCluster, one: Psycopg, postgres_url: str, isolation: str
) -> None:
    if isolation == "repeatable read":
        await repeatable_read(one)
    await one.send(probe.at("a").note.request("x"))
    resharding = asyncio.ensure_future(reshard(postgres_url, cluster.namespace, 20.0))
    waits = {
        "read committed": "SELECT 1 FROM shard_group WHERE NOT open",
        "repeatable read": "SELECT 1 FROM pg_locks WHERE NOT granted",
    }

    async def waiting() -> bool:
        return bool(await cluster.rows(waits[isolation]))

    await eventually_async(waiting)
    assert not resharding.done()
    await one.commit()
    await resharding
    stray = "SELECT count(*) FROM pending p LEFT JOIN shard s USING (shard_id) WHERE s.shard_id IS NULL"
    assert await cluster.rows(stray) == [0]
    assert await cluster.pending() == 2


# ----- refusals: the transaction stays as it was


async def test_a_type_that_the_cluster_does_not_have(
    probe: type[Probe], cluster: LiveCluster, app: EntityQ, one: Psycopg
) -> None:
    unknown: type[Probe] = app.entity(type("Unknown", (Probe,), {}))
    requests = [probe.at("a").note.request("x"), unknown.at("a").note.request("x")]
    with pytest.raises(PersistenceError, match="has no entity type Unknown"):
        await one.send_many(requests)
    await one.send(probe.at("a").note.request("alone"))
    await one.commit()
    assert await cluster.requests() == 2


async def test_a_closed_group(probe: type[Probe], cluster: LiveCluster, one: Psycopg) -> None:
    await cluster.rows("UPDATE shard_group SET open = false")
    with pytest.raises(PersistenceError, match="default is closed"):
        await one.send(probe.at("a").note.request("x"))
    await cluster.rows("UPDATE shard_group SET open = true")
    await one.send(probe.at("a").note.request("x"))
    await one.commit()
    assert await cluster.requests() == 2


async def test_no_room(cluster: LiveCluster, one: Psycopg) -> None:
    app = cluster.app(max_pending=1)
    probe = cluster.actor(app, Probe)
    await probe.at("a").note.send("the only one")
    with pytest.raises(MailboxFull, match="too many unanswered requests"):
        await one.send(probe.at("a").note.request("x"))
    await one.commit()
    assert await cluster.requests() == 1


async def test_what_can_be_in_no_transaction(probe: type[Probe], one: Psycopg) -> None:
    with pytest.raises(MalformedMessage, match="peek of Probe is volatile"):
        await one.send(probe.at("a").peek.request())
    with pytest.raises(PayloadTooLarge, match="10,001 requests"):
        await one.send_many([probe.at("a").note.request("x")] * (MAX_MANY + 1))
    assert await one.send_many([]) == []


async def test_a_test_client_has_no_transactions(app: EntityQ, one: Psycopg) -> None:
    class Note(Probe):
        pass

    app.entity(Note)
    async with testing.client(Note) as client:
        with pytest.raises(EntityQError, match="this test client has no Postgres"):
            await one.send(client.at("a").note.request("x"))


# ----- whatever the connection is like


async def test_a_connection_of_the_callers_own_kind(
    probe: type[Probe], cluster: LiveCluster, postgres_url: str
) -> None:
    one = Psycopg(
        postgres_url,
        row_factory=dict_row,
        cursor_factory=psycopg.RawCursor,
        autocommit=True,
        prepare_threshold=0,
        options="-c search_path=pg_catalog -c standard_conforming_strings=on",
    )
    try:
        assert not (await one.send(probe.at("a").add.request(1, "k"))).duplicate
        assert (await one.send(probe.at("a").add.request(1, "k"))).duplicate
        # In autocommit, each of them is a transaction of its own.
        assert await cluster.requests() == 2
        count = b"SELECT count(*) AS n FROM pg_prepared_statements"
        prepared = one.connection.execute(count, prepare=False).fetchone()
        assert prepared == {"n": 0}
    finally:
        await one.close()


async def test_a_role_of_the_callers_own_needs_these_rights_and_no_more(
    probe: type[Probe], cluster: LiveCluster, one: Psycopg
) -> None:
    role = f"caller_of_{cluster.namespace}".replace("-", "_")
    await cluster.rows(f"CREATE ROLE {role}")
    try:
        await cluster.rows(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}")
        await cluster.rows(f"GRANT USAGE ON SEQUENCE outbox_seq TO {role}")
        await cluster.rows(f"GRANT SELECT ON outbox, pending, timer, entity_type, shard_group TO {role}")
        await cluster.rows(f"GRANT INSERT ON outbox, pending, timer TO {role}")
        await one.execute(f"SET ROLE {role}")
        first = await one.send(probe.at("a").add.request(1, "k"))
        assert (await one.send(probe.at("a").add.request(1, "k"))).request_id == first.request_id
        await one.commit()
        await cluster.rows(f"GRANT UPDATE ON shard_group TO {role}")
        await repeatable_read(one)
        await one.execute(f"SET ROLE {role}")
        await one.send(probe.at("a").note.request("x"))
        await one.commit()
    finally:
        await one.rollback()
        await cluster.rows(f"DROP OWNED BY {role}")
        await cluster.rows(f"DROP ROLE {role}")
    assert await cluster.requests() == 3


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")
async def test_through_a_transaction_pooler(private_servers: PrivateServers, namespace: str) -> None:
    url = listen_on_tcp(private_servers)
    with (
        tempfile.TemporaryDirectory(prefix="entityq-", dir="/tmp") as directory,
        pgbouncer(url, Path(directory), mode="transaction", round_robin=1) as pooler,
    ):
        async with live_cluster(url, private_servers.redis_url, namespace) as cluster:
            app = cluster.app()
            probe = cluster.actor(app, Probe)
            await cluster.start(app)
            async with await psycopg.AsyncConnection[Any].connect(pooler) as connection:
                for number in range(7):
                    receipt = await send(connection, probe.at("a").add.request(1, f"k-{number}"))
                    await connection.commit()
                    assert await receipt == number + 1
                (repeat,) = await send_many(connection, [probe.at("a").add.request(1, "k-0")])
                assert await repeat.receipt == 1


async def test_what_is_told_is_the_shard_once(
    probe: type[Probe], namespace: str, one: Psycopg, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as listening:
        listening.execute(f'LISTEN "{unpublished_channel(namespace)}"'.encode())
        await one.send_many([probe.at("a").note.request(str(n)) for n in range(5)])
        await one.send(probe.at("a").note.request("x"))
        await one.commit()
        told = [notify.payload for notify in listening.notifies(timeout=2, stop_after=1)]
        told += [notify.payload for notify in listening.notifies(timeout=0.1)]
    assert len(told) == 1
    assert told[0].isdecimal()
