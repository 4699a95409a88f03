"""The SQL of handlers on a real cluster: it commits with state, reply and sends of its turn, or not at all."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg.errors import UniqueViolation

from entityq import (
    Entity,
    EntityDefect,
    EntityQ,
    EntityQError,
    Failure,
    Interrupted,
    RetryPolicy,
    message,
    testing,
)
from tests.support.live import LiveCluster, live_cluster, soon
from tests.support.losing_proxy import losing_proxy
from tests.support.probe import Probe
from tests.support.processes import ROOT
from tests.support.stage import Actor

ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(initial=0.02, maximum=0.02, attempts=2)


class Taken(Failure):
    key: str


class Unwanted(Failure):
    pass


class Teller(Actor):
    probe: ClassVar[type[Probe]] = Probe
    total: int = 0

    async def _insert(self, key: str) -> None:
        await self.context.connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])

    @message(primary_key="key", transactional=True, retry=TWICE)
    async def enter(self, key: str, gate: str = "") -> int:
        await self._insert(key)
        self.total += 1
        await self.probe.at("probe").note.send(key)
        await self._stage.enter(f"enter {key} {self.context.attempt}", gate)
        return self.total

    @message(transactional=True)
    def enter_in_thread(self, key: str, gate: str = "") -> int:
        self.context.blocking_connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])
        self.total += 1
        self._stage.enter_from_thread(f"enter {key}", gate)
        return self.total

    @message
    async def lazily(self, key: str) -> int:
        async with self.context.transaction() as connection:
            await connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])
        assert await self.context.transaction() is connection
        self.total += 1
        return self.total

    @message
    def lazily_in_thread(self, key: str) -> int:
        with self.context.transaction() as connection:
            connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])
        self.total += 1
        return self.total

    @message(transactional=True)
    async def fail(self, key: str) -> None:
        await self._insert(key)
        self.total += 1
        raise Unwanted

    @message(transactional=True, retry=ONCE)
    async def explode(self, key: str) -> None:
        await self._insert(key)
        raise ValueError(key)

    @message(transactional=True)
    async def claim(self, key: str) -> int:
        try:
            async with self.context.transaction() as connection:
                await connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])
        except UniqueViolation:
            raise Taken(key=key) from None
        return 1

    @message(transactional=True)
    async def claim_or(self, key: str, other: str) -> str:
        try:
            async with self.context.transaction():
                await self._insert(key)
        except UniqueViolation:
            await self._insert(other)
            return other
        return key

    @message(retry=ONCE)
    def claim_in_thread(self, key: str, other: str) -> str:
        try:
            with self.context.transaction() as connection:
                connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])
        except UniqueViolation:
            self.context.blocking_connection.execute("INSERT INTO ledger (key) VALUES (%s)", [other])
            return other
        return key

    @message(transactional=True, retry=ONCE)
    async def run(self, statements: list[str]) -> list[str]:
        connection = self.context.connection
        rows: list[Any] = []
        for statement in statements:
            cursor = await connection.execute(statement.encode())
            rows += await cursor.fetchall() if cursor.description else []
        return [str(row[0]) for row in rows]

    @message(transactional=True, retry=ONCE)
    async def go_on_after_an_error(self) -> None:
        with contextlib.suppress(psycopg.DataError):
            await self.context.connection.execute("SELECT 1 / 0")

    @message(transactional=True, retry=ONCE)
    async def commit_by_itself(self, key: str) -> None:
        await self._insert(key)
        await self.context.connection.commit()

    @message(transactional=True, retry=ONCE)
    def commit_by_itself_in_thread(self, key: str) -> None:
        self.context.blocking_connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])
        self.context.blocking_connection.commit()

    @message(transactional=True, retry=ONCE)
    async def leave_a_block_open(self, key: str) -> None:
        await self._insert(key)
        self._block = self.context.connection.transaction()
        await self._block.__aenter__()

    @message(transactional=True)
    async def pid(self, gate: str = "") -> int:
        pid = self.context.connection.info.backend_pid
        await self._stage.enter(f"pid {self.id} {pid}", gate)
        return pid

    @message(transactional=True, time_limit=0.3, retry=ONCE)
    async def sleep(self, key: str) -> None:
        await self._insert(key)
        await self.context.connection.execute("SELECT pg_sleep(30)")

    @message(transactional=True)
    def go_on_in_thread(self, key: str) -> None:
        connection = self.context.blocking_connection
        connection.execute("INSERT INTO ledger (key) VALUES (%s)", [key])
        self._stage.enter_from_thread(f"go on {key}", "g")
        try:
            connection.execute("SELECT 1")
        except psycopg.OperationalError:
            self._stage.enter_from_thread("cut off")
            raise

    @message(transactional=True)
    async def ask_another(self, key: str) -> int:
        await self._insert(key)
        return await self.probe.at("probe").note(key)

    @message(persisted=False)
    async def begin_volatile(self) -> None:
        await self.context.transaction()

    @message(concurrent=True, retry=ONCE)
    async def begin_concurrent(self) -> None:
        await self.context.transaction()

    @message(retry=ONCE)
    async def use_none(self) -> None:
        await self.context.connection.execute("SELECT 1")

    @message(transactional=True, retry=ONCE)
    async def use_the_other_kind(self) -> None:
        self.context.blocking_connection.execute("SELECT 1")

    @message(retry=ONCE)
    async def block(self) -> None:
        with self.context.transaction():
            pass

    @message
    async def begin_too_late(self) -> None:
        context = self.context

        async def late() -> None:
            await asyncio.sleep(0.05)
            try:
                await context.transaction()
            except EntityQError as error:
                self._stage.tell(f"late {error.what}")

        self._late = asyncio.create_task(late())

    @message(persisted=False)
    async def read(self) -> int:
        return self.total


@pytest.fixture
async def cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncIterator[LiveCluster]:
    create_ledger(postgres_url)
    async with live_cluster(postgres_url, redis_url, namespace) as live:
        yield live


def create_ledger(postgres_url: str) -> None:
    """The user's own table, where the user's search_path finds it."""
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE ledger (key text PRIMARY KEY)")


async def tellers(cluster: LiveCluster, **settings: object) -> type[Teller]:
    app = cluster.app(**settings)
    teller = cluster.actor(app, Teller)
    Teller.probe = cluster.actor(app, Probe)
    await cluster.start(app)
    return teller


async def ledger(cluster: LiveCluster) -> list[str]:
    return await cluster.rows("SELECT key FROM public.ledger ORDER BY key")


# ----- one transaction


async def test_del_28_sql_state_reply_and_sends_are_one_transaction(cluster: LiveCluster) -> None:
    teller = await tellers(cluster)
    cluster.stage.close("g")
    receipt = await teller.at("a").enter.send("k-1", gate="g")
    await cluster.stage.saw("enter k-1 1")
    assert (await ledger(cluster), await cluster.replies()) == ([], 0)
    cluster.stage.open("g")
    assert await receipt == 1
    writers = await cluster.rows(
        "SELECT xmin::text FROM public.ledger UNION ALL"
        " SELECT xmin::text FROM entity WHERE entity_id = 'a' UNION ALL"
        " SELECT xmin::text FROM outbox WHERE entity_id = 'a'"
    )
    assert len(writers) == 3
    assert len(set(writers)) == 1
    await cluster.stage.saw("note probe k-1")
    # The first reply, without the handler.
    assert await teller.at("a").enter("k-1", gate="g") == 1
    assert await ledger(cluster) == ["k-1"]


async def test_the_handlers_of_both_kinds_with_and_without_a_declaration(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    assert await teller.enter("k-1") == 1
    assert await teller.enter_in_thread("k-2") == 2
    assert await teller.lazily("k-3") == 3
    assert await teller.lazily_in_thread("k-4") == 4
    assert await ledger(cluster) == ["k-1", "k-2", "k-3", "k-4"]
    own = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^entityq:[0-9]+ turn'"
    assert await cluster.rows(own + " AND datname = current_database()") in ([1], [2])


async def test_a_failure_undoes_the_sql(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    with pytest.raises(Unwanted):
        await teller.fail("k-1")
    assert (await ledger(cluster), await teller.read()) == ([], 0)
    assert await teller.enter("k-1") == 1


async def test_a_defect_undoes_the_sql(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    with pytest.raises(EntityDefect, match="ValueError"):
        await teller.explode("k-1")
    assert await ledger(cluster) == []
    assert await teller.enter("k-1") == 1


async def test_an_error_of_the_sql_can_be_a_failure_or_be_handled(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    assert await teller.claim("k-1") == 1
    with pytest.raises(Taken) as taken:
        await teller.claim("k-1")
    assert taken.value.key == "k-1"
    assert await teller.claim_or("k-1", "k-2") == "k-2"
    assert await teller.claim_in_thread("k-1", "k-3") == "k-3"
    assert await ledger(cluster) == ["k-1", "k-2", "k-3"]


async def test_a_send_that_conflicts_undoes_the_sql(cluster: LiveCluster) -> None:
    class Sender(Teller):
        @message(transactional=True)
        async def send_twice(self, key: str) -> None:
            await self._insert(key)
            await self.probe.at("probe").add.send(2, key="known")

    app = cluster.app()
    sender = cluster.actor(app, Sender)
    Teller.probe = cluster.actor(app, Probe)
    await cluster.start(app)
    assert await Teller.probe.at("probe").add(1, key="known") == 1
    with pytest.raises(EntityDefect, match="primary key"):
        await sender.at("a").send_twice("k-1")
    assert await ledger(cluster) == []


# ----- what handlers may not do


@pytest.mark.parametrize("name", ["commit_by_itself", "commit_by_itself_in_thread"])
async def test_a_commit_of_the_handlers_own_is_refused(cluster: LiveCluster, name: str) -> None:
    teller = (await tellers(cluster)).at("a")
    with pytest.raises(EntityDefect, match="ProgrammingError"):
        await getattr(teller, name)("k-1")
    assert await ledger(cluster) == []


@pytest.mark.parametrize("statements", [["COMMIT"], ["ROLLBACK"], ["COMMIT", "BEGIN"], ["COMMIT AND CHAIN"]])
async def test_a_transaction_that_the_handler_ends_is_a_defect(
    cluster: LiveCluster, statements: list[str]
) -> None:
    teller = (await tellers(cluster)).at("a")
    with pytest.raises(EntityDefect, match="the handler has ended the transaction of its turn"):
        await teller.run(statements)
    assert await teller.enter("k-1") == 1


async def test_going_on_after_a_failed_statement_is_a_defect(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    with pytest.raises(EntityDefect, match="a statement of the handler has failed"):
        await teller.go_on_after_an_error()
    assert await teller.enter("k-1") == 1


async def test_a_block_that_is_left_open_is_a_defect(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    with pytest.raises(EntityDefect):
        await teller.leave_a_block_open("k-1")
    assert await ledger(cluster) == []
    assert await teller.enter("k-1") == 1


async def test_a_deferred_constraint_fails_before_anything_is_written(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    await cluster.rows("CREATE TABLE public.late (key text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    insert = "INSERT INTO late VALUES ('x')"
    with pytest.raises(EntityDefect, match="UniqueViolation"):
        await teller.run([insert, insert])
    assert await cluster.rows("SELECT count(*) FROM public.late") == [0]


async def test_where_there_is_no_transaction_the_error_says_so(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    for ask in (teller.begin_volatile, teller.begin_concurrent):
        with pytest.raises(EntityDefect, match="volatile or concurrent"):
            await ask()
    with pytest.raises(EntityDefect, match="the turn has no transaction"):
        await teller.use_none()
    with pytest.raises(EntityDefect, match="of the other kind"):
        await teller.use_the_other_kind()
    with pytest.raises(EntityDefect, match="block the event loop"):
        await teller.block()
    await teller.begin_too_late()
    await cluster.stage.until(lambda: bool(cluster.stage.lines("late ")), "a transaction after its turn")
    assert "is over" in cluster.stage.lines("late ")[0]


# ----- sessions


async def test_the_session_is_the_users_and_nothing_stays_in_it(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    shown = ["SHOW search_path", "SHOW enable_seqscan", "SHOW lock_timeout", "SHOW transaction_isolation"]
    before = await teller.run(shown)
    assert before == ['"$user", public', "on", "0", "read committed"]
    await teller.run(
        [
            "SET search_path TO nowhere",
            "SET enable_seqscan TO off",
            "CREATE TEMP TABLE outbox (x int)",
            "SELECT pg_advisory_lock(1)",
            "LISTEN something",
            "SET ROLE pg_monitor",
        ]
    )
    assert await teller.run(shown) == before
    assert await teller.run(["SELECT count(*) FROM pg_tables WHERE schemaname LIKE 'pg_temp%'"]) == ["0"]
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = 1"
    assert await teller.run([held, "SELECT current_user = session_user"]) == ["0", "True"]


async def test_turns_wait_for_a_connection_and_hold_up_nobody(cluster: LiveCluster) -> None:
    """Two have connections; the third holds no slot, so that other entities go on."""
    teller = await tellers(cluster, max_turns=3)
    cluster.stage.close("g")
    receipts = [await teller.at(f"t-{number}").pid.send(gate="g") for number in range(3)]
    await cluster.stage.until(lambda: len(cluster.stage.lines("pid ")) == 2, "two transactions")
    for number in range(4):
        assert await Teller.probe.at(f"p-{number}").note("x") == 1
    assert len(cluster.stage.lines("pid ")) == 2
    cluster.stage.open("g")
    pids = [await receipt for receipt in receipts]
    assert len(set(pids)) == 2


async def test_a_connection_that_ends_under_the_handler_is_a_defect_and_retried(cluster: LiveCluster) -> None:
    teller = await tellers(cluster)
    cluster.stage.close("g")
    receipt = await teller.at("a").enter.options(timeout=20).send("k-1", gate="g")
    await cluster.stage.saw("enter k-1 1")
    ended = await cluster.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name ~ '^entityq:[0-9]+ turn'"
    )
    assert ended == [True]
    cluster.stage.open("g")
    assert await receipt == 1
    assert cluster.stage.lines("enter ") == ["k-1 1", "k-1 2"]
    assert await ledger(cluster) == ["k-1"]


async def test_an_idle_connection_that_has_ended_is_not_used(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    first = await teller.pid()
    assert await teller.pid() == first
    assert await cluster.rows("SELECT pg_terminate_backend(%s, 5000)", first) == [True]
    assert await teller.pid() != first


async def test_a_statement_beyond_the_time_limit_is_ended_with_the_turn(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    with pytest.raises(EntityDefect):
        await teller.sleep("k-1")
    assert await ledger(cluster) == []
    assert await cluster.rows(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%' AND state = 'active'"
    ) == [0]
    assert await teller.enter("k-1") == 1


async def test_a_turn_that_is_cancelled_undoes_the_sql(cluster: LiveCluster) -> None:
    teller = (await tellers(cluster)).at("a")
    cluster.stage.close("g")
    receipt = await teller.enter.send("k-1", gate="g")
    await cluster.stage.saw("enter k-1 1")
    await receipt.cancel()
    with pytest.raises(Interrupted):
        await receipt
    assert await ledger(cluster) == []
    assert await teller.enter("k-2") == 1


async def test_a_thread_that_outlives_its_turn_has_no_transaction_any_more(cluster: LiveCluster) -> None:
    app = cluster.app(termination_time=0.2)
    teller = cluster.actor(app, Teller)
    member = await cluster.start(app)
    cluster.stage.close("g")
    await teller.at("a").go_on_in_thread.send("k-1")
    await cluster.stage.saw("go on k-1")
    await cluster.stop(member)
    cluster.stage.open("g")
    await cluster.stage.saw("cut off")
    assert await ledger(cluster) == []
    assert await cluster.pending() == 1


async def test_an_ask_in_a_transaction_is_committed_at_once(cluster: LiveCluster) -> None:
    """It keeps the connection, and no slot of the other turn."""
    teller = await tellers(cluster, max_turns=1)
    assert await teller.at("a").ask_another("k-1") == 1
    assert await ledger(cluster) == ["k-1"]


async def test_a_row_of_the_shard_that_somebody_has_locked_is_waited_for(
    cluster: LiveCluster, postgres_url: str
) -> None:
    teller = await tellers(cluster)
    cluster.stage.close("g")
    receipt = await teller.at("a").enter.options(timeout=20).send("k-1", gate="g")
    await cluster.stage.saw("enter k-1 1")

    async def waiting() -> bool:
        return bool(await cluster.rows("SELECT 1 FROM pg_locks WHERE NOT granted"))

    with psycopg.connect(postgres_url) as somebody:
        somebody.execute("SELECT 1 FROM entityq.shard FOR UPDATE")
        cluster.stage.open("g")
        await soon(waiting, "a turn that waits for the row")
        assert await ledger(cluster) == []
    assert await receipt == 1


# ----- the commit


@pytest.mark.parametrize("done", [True, False], ids=["committed", "not sent"])
async def test_an_answer_of_the_commit_that_is_lost_is_settled(
    postgres_url: str, redis_url: str, namespace: str, *, done: bool
) -> None:
    create_ledger(postgres_url)
    # Only the runner's pool leads through the proxy, and the client's connections.
    async with (
        losing_proxy(postgres_url) as proxy,
        live_cluster(proxy.url, redis_url, namespace, lease_url=postgres_url, ask_timeout=20.0) as cluster,
    ):
        teller = await tellers(cluster)
        cluster.stage.close("g")
        receipt = await teller.at("a").enter.send("k-1", gate="g")
        await cluster.stage.saw("enter k-1 1")
        proxy.lose(b"COMMIT\x00", unsent=not done)
        cluster.stage.open("g")
        assert await receipt == 1
        assert proxy.lost.is_set()
        assert cluster.stage.lines("enter ") == (["k-1 1"] if done else ["k-1 1", "k-1 1"])
        assert await ledger(cluster) == ["k-1"]
        await cluster.stage.saw("note probe k-1")


async def test_a_turn_whose_lease_is_gone_does_not_commit(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an eviction that the runner has not noticed: another epoch, and nothing else, is in its way."""
    teller = await tellers(cluster)
    cluster.stage.close("g")
    receipt = await teller.at("a").enter.send("k-1", gate="g")
    await cluster.stage.saw("enter k-1 1")
    await cluster.rows("UPDATE shard SET epoch = epoch + 1")
    cluster.stage.open("g")

    async def dropped() -> bool:
        return "turn.dropped" in caplog.text

    await soon(dropped, "the turn dropped")
    assert "the lease under which the turn started is gone" in caplog.text
    assert (await ledger(cluster), await cluster.replies()) == ([], 0)
    await cluster.rows("UPDATE shard SET epoch = epoch - 1")
    assert await receipt == 1


async def test_leases_that_are_lost_end_the_transactions(cluster: LiveCluster) -> None:
    teller = await tellers(cluster)
    cluster.stage.close("g")
    receipt = await teller.at("a").enter.options(timeout=20).send("k-1", gate="g")
    await cluster.stage.saw("enter k-1 1")
    (before,) = await cluster.rows("SELECT incarnation FROM runner")
    await cluster.rows("SELECT pg_terminate_backend(pid) FROM runner")

    async def ended() -> bool:
        own = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s AND datname = current_database()"
        return await cluster.rows(own, f"entityq:{before} turn%") == [0]

    await soon(ended, "the end of the transaction of the lost life")
    cluster.stage.open("g")
    assert await receipt == 1
    assert await ledger(cluster) == ["k-1"]


# ----- the page of the documentation


async def test_the_example_of_the_documentation(
    postgres_url: str, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("POSTGRES_URL", postgres_url), ("REDIS_URL", redis_url), ("NAMESPACE", namespace)):
        monkeypatch.setenv(f"ENTITYQ_{name}", value)
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE invoices (number text PRIMARY KEY, customer text, amount int)")
        owner.execute("CREATE TABLE notes (text text)")
    page = (ROOT / "docs" / "transactions.md").read_text()
    module = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", module)
    exec(page.split("```python\n")[1].split("```")[0], module.__dict__)
    app: EntityQ = module.app
    async with live_cluster(postgres_url, redis_url, namespace) as cluster:
        member = await cluster.start(app)
        customer = module.Customer.at("c-1")
        assert await customer.invoice("i-1", 10) == 1
        assert await customer.invoice("i-1", 10) == 1
        with pytest.raises(module.AlreadyInvoiced):
            await module.Customer.at("c-2").invoice("i-1", 20)
        invoices = await cluster.rows("SELECT number, customer, amount FROM public.invoices")
        assert invoices == [("i-1", "c-1", 10)]

        async def noted() -> bool:
            return await cluster.rows("SELECT text FROM public.notes") == ["i-1: 10"]

        await soon(noted, "the note")
        await cluster.stop(member)
        await app.close()


# ----- without servers


async def test_the_test_client_says_that_it_has_no_postgres() -> None:
    app = EntityQ("transactions", namespace="transactions", ask_timeout=5.0)

    @app.entity
    class Writer(Entity):
        @message(transactional=True, retry=ONCE)
        async def write(self) -> None:
            await self.context.connection.execute("SELECT 1")

        @message(transactional=True)
        async def leave(self) -> int:
            return 1

    async with testing.client(Writer) as client:
        writer = client.at("a")
        with pytest.raises(EntityDefect, match=r"entityq\.testing has no Postgres"):
            await writer.write()
        assert await writer.leave() == 1
