"""The rows of a reshard, without clients and runners: whatever there is, wherever it is interrupted."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entityq.address import Address, Shard, entity_hash, shard_number, signed64
from entityq.errors import EntityQError
from entityq.postgres.connect import Connection, connect, connect_lease, fetch_value
from entityq.postgres.facts import Facts, ensure_cluster, load_facts, register_types
from entityq.postgres.outbox import NewRequest, insert_requests, read_conflicts
from entityq.postgres.overview import Change, find_request, read_reshard
from entityq.postgres.queries import load
from entityq.postgres.reshard import Resharding, changes_something, new_counts
from tests.support.leases import Cluster, open_cluster
from tests.support.servers import SCHEMA, SHARDS

TYPES = {"Account": "default", "Mail": "default", "Invoice": "billing"}


@dataclass
class Rows:
    """What a test has put into the database, and looks for afterwards."""

    connection: Connection
    namespace: str
    sent: int = 0

    async def send(self, names: Sequence[str], *, answered: bool) -> None:
        """Every second one of those that are not answered waits for its time, some of them for ever."""
        requests = [
            NewRequest(
                self._next(), Address(type_, name), "m", f"{type_} {name} {self.sent}".encode(), b"h", b"e"
            )
            for name in names
            for type_ in TYPES
        ]
        await insert_requests(self.connection, self.namespace, requests)
        ids = [request.request_id for request in requests]
        if not answered:
            await self.connection.execute(
                b"WITH later AS (DELETE FROM pending WHERE request_id = ANY (%s) AND request_id %% 2 = 0 RETURNING *)"
                b" INSERT INTO timer (shard_id, due_at, request_id, entity_hash) SELECT shard_id, CASE"
                b" WHEN request_id %% 3 = 0 THEN 'infinity' ELSE now() + interval '1 day' END, request_id, entity_hash"
                b" FROM later",
                [ids],
            )
        if answered:
            await self.connection.execute(b"DELETE FROM pending WHERE request_id = ANY (%s)", [ids])
            await self.connection.execute(
                b"UPDATE outbox SET reply = 'r' || request_id::text::bytea WHERE request_id = ANY (%s)", [ids]
            )
            await self.connection.execute(
                b"INSERT INTO entity (shard_id, type, entity_id, version, epoch, outcome, state)"
                b" SELECT DISTINCT shard_id, type, entity_id, 1, 1, 1, convert_to(entity_id, 'UTF8')"
                b" FROM outbox WHERE request_id = ANY (%s) ON CONFLICT DO NOTHING",
                [ids],
            )

    def _next(self) -> int:
        self.sent += 1
        return self.sent

    async def everything(self) -> list[list[tuple[Any, ...]]]:
        """All there is, but for the shards; the order of unanswered requests of an entity included."""
        queries = (
            b"SELECT request_id, seq, entity_hash, type, entity_id, key_digest, reply FROM outbox ORDER BY 1",
            b"SELECT request_id, seq, entity_hash FROM pending ORDER BY seq",
            b"SELECT request_id, due_at::text, entity_hash FROM timer ORDER BY 1",
            b"SELECT type, entity_id, version, epoch, state FROM entity ORDER BY 1, 2",
        )
        return [await (await self.connection.execute(query)).fetchall() for query in queries]

    async def check_places(self) -> Facts:
        """Every row is in the shard that the facts say."""
        facts = await load_facts(self.connection, self.namespace)
        for query in (
            b"SELECT shard_id, type, entity_id FROM outbox",
            b"SELECT p.shard_id, o.type, o.entity_id FROM pending p JOIN outbox o USING (request_id)",
            b"SELECT t.shard_id, o.type, o.entity_id FROM timer t JOIN outbox o USING (request_id)",
            b"SELECT shard_id, type, entity_id FROM entity",
        ):
            for shard_id, type_, entity_id in await (await self.connection.execute(query)).fetchall():
                group = facts.groups[facts.types[type_]]
                number = shard_number(entity_hash(entity_id), group.shards)
                assert shard_id == group.first_shard + number
        owners = b"SELECT shard_id, group_id, number FROM shard ORDER BY 1"
        shards = [
            (group.first_shard + number, group.group_id, number)
            for group in sorted(facts.groups.values(), key=lambda group: group.first_shard)
            for number in range(group.shards)
        ]
        assert await (await self.connection.execute(owners)).fetchall() == shards
        assert all(group.open for group in facts.groups.values())
        assert await read_reshard(self.connection, self.namespace) is None
        assert await fetch_value(self.connection, b"SELECT count(*) FROM reshard_group") == 0
        return facts


@pytest.fixture
async def rows(postgres_url: str, namespace: str) -> AsyncIterator[Rows]:
    async with await connect(postgres_url, schema=SCHEMA) as connection:
        await register_types(connection, namespace, TYPES)
        yield Rows(connection, namespace)


async def run(
    url: str,
    namespace: str,
    change: Change,
    *,
    statements: int | None = None,
    wait: float = 10.0,
    batch: int = 3,
) -> bool:
    """`statements`: after so many its session ends, and so it does."""
    left = statements

    async def forget_streams(shards: Sequence[Shard]) -> None:
        assert all(shard.group in {"default", "billing", "slow"} for shard in shards)

    async with await connect_lease(url, schema=SCHEMA) as connection:
        execute = connection.execute

        async def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                await connection.close()
            if left is not None:
                left -= 1
            return await execute(*arguments, **options)

        vars(connection)["execute"] = counted
        return await Resharding(
            connection,
            schema=SCHEMA,
            namespace=namespace,
            say=lambda sentence: None,
            forget_streams=forget_streams,
            wait=wait,
            batch=batch,
        ).run(change)


def moved_type(type_: str, group: str) -> Change:
    return Change(group, type=type_)


names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20), max_size=12
)
changes = st.one_of(
    st.builds(
        Change,
        st.sampled_from(["default", "billing"]),
        st.integers(1, 60),
    ),
    st.builds(
        moved_type,
        st.sampled_from(sorted(TYPES)),
        st.sampled_from(["default", "billing", "slow"]),
    ),
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(answered=names, unanswered=names, plan=st.lists(changes, min_size=1, max_size=3))
async def test_nothing_is_lost_or_misplaced(
    rows: Rows, postgres_url: str, answered: list[str], unanswered: list[str], plan: list[Change]
) -> None:
    """The database is the same for all examples: they go on from each other's end."""
    await rows.send(answered, answered=True)
    await rows.send(unanswered, answered=False)
    for change in plan:
        before = await rows.everything()
        facts = await load_facts(rows.connection, rows.namespace)
        epoch = await fetch_value(rows.connection, b"SELECT max(epoch) FROM shard")
        first_free = max(group.first_shard + group.shards for group in facts.groups.values())
        changed = await run(postgres_url, rows.namespace, change, batch=5)
        assert changed == changes_something(facts, change)
        assert await rows.everything() == before
        after = await rows.check_places()
        for name in new_counts(facts, change) if changed and change.group in facts.groups else ():
            assert after.groups[name].first_shard >= first_free, "a shard id was used again"
            lowest = await fetch_value(
                rows.connection,
                b"SELECT min(epoch) FROM shard WHERE group_id = %(group)s",
                {"group": after.groups[name].group_id},
            )
            assert lowest > 0
            assert lowest <= epoch + 2  # one more keeps the turns of old owners out


async def test_interrupted_anywhere_it_goes_on_where_it_was(rows: Rows, postgres_url: str) -> None:
    """Its session ends before the first, the second, ... statement; the same command again finishes it."""
    await rows.send([f"answered {n}" for n in range(4)], answered=True)
    await rows.send([f"unanswered {n}" for n in range(4)], answered=False)
    before = await rows.everything()
    phases: set[str | None] = set()
    targets = (
        Change("default", 5),
        Change("default", 9),
        Change("slow", type="Mail"),
        Change("default", type="Mail"),
    )
    for statements in range(200):
        change = targets[statements % len(targets)]
        facts = await load_facts(rows.connection, rows.namespace)
        if not changes_something(facts, change):
            continue
        try:
            await run(postgres_url, rows.namespace, change, statements=statements)
        except psycopg.OperationalError:
            unfinished = await read_reshard(rows.connection, rows.namespace)
            phases.add(None if unfinished is None else unfinished.phase)
            open_ = await fetch_value(rows.connection, b"SELECT bool_and(open) FROM shard_group")
            assert open_ == (unfinished is None), "closed, or finished: nothing in between"
            await run(postgres_url, rows.namespace, change)
            assert await rows.everything() == before
            await rows.check_places()
        else:
            break
    else:
        pytest.fail("it never came to its end")
    assert phases == {None, "closing", "moving"}
    assert statements > 25


async def test_keys_and_results_are_found_at_every_moment(rows: Rows, postgres_url: str) -> None:
    await rows.send(["a", "b"], answered=True)
    await rows.send(["c", "d"], answered=False)
    await rows.connection.execute(
        b"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$"
    )
    await rows.connection.execute(
        b"CREATE TRIGGER refuse BEFORE UPDATE ON outbox FOR EACH ROW WHEN (new.request_id = 7)"
        b" EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(psycopg.errors.RaiseException, match="refused"):
        await run(postgres_url, rows.namespace, Change("default", 5), batch=1)
    moved = b"SELECT count(*) FROM outbox o JOIN reshard_group r ON o.shard_id >= r.first_shard"
    assert await fetch_value(rows.connection, moved) == 4
    unfinished = await read_reshard(rows.connection, rows.namespace)
    assert unfinished is not None and unfinished.phase == "moving"
    for request_id in range(7, rows.sent + 1):
        assert await find_request(rows.connection, rows.namespace, request_id) is not None
    new = NewRequest(99, Address("Account", "a"), "m", b"Account a 1", b"h", b"e")
    assert await insert_requests(rows.connection, rows.namespace, [new]) == {}
    assert [known.reply for known in await read_conflicts(rows.connection, [new])] == [b"r1"]
    await rows.connection.execute(b"DROP TRIGGER refuse ON outbox")
    assert await run(postgres_url, rows.namespace, Change("default", 5))
    await rows.check_places()


async def test_what_may_have_begun_to_move_is_not_opened_again(rows: Rows, postgres_url: str) -> None:
    """It was stopped after the database had recorded that it moves, and before it was told so."""
    begin_moving = load("reshard.sql")["begin_moving"]
    said: list[str] = []
    async with await connect_lease(postgres_url, schema=SCHEMA) as connection:
        execute = connection.execute

        async def stopped(query: bytes, *arguments: Any, **options: Any) -> Any:
            cursor = await execute(query, *arguments, **options)
            if query == begin_moving:
                raise asyncio.CancelledError
            return cursor

        vars(connection)["execute"] = stopped
        resharding = Resharding(
            connection, schema=SCHEMA, namespace=rows.namespace, say=said.append, forget_streams=_nothing
        )
        with pytest.raises(asyncio.CancelledError):
            await resharding.run(Change("default", 5))
    assert "Opened again: nothing was changed." not in said
    unfinished = await read_reshard(rows.connection, rows.namespace)
    assert unfinished is not None and unfinished.phase == "moving"
    assert not (await load_facts(rows.connection, rows.namespace)).groups["default"].open
    assert await run(postgres_url, rows.namespace, Change("default", 5))
    await rows.check_places()


async def test_another_change_is_refused_until_the_first_is_finished(rows: Rows, postgres_url: str) -> None:
    await rows.send(["a"], answered=True)
    with pytest.raises(psycopg.OperationalError):
        await run(postgres_url, rows.namespace, Change("default", 5), statements=16, batch=1)
    expected = r"shard group default to 5 shards is not finished.*"
    with pytest.raises(EntityQError, match=expected) as caught:
        await run(postgres_url, rows.namespace, Change("default", 6))
    assert caught.value.advice == "Finish it first: `entityq reshard --group default --shards 5`."
    with pytest.raises(EntityQError, match=expected):
        await run(postgres_url, rows.namespace, Change("billing", 5))
    assert await run(postgres_url, rows.namespace, Change("default", 5))
    await rows.check_places()


async def test_two_at_once(rows: Rows, postgres_url: str) -> None:
    """The second waits for the first, and finds nothing to do."""
    await rows.send([str(n) for n in range(30)], answered=False)
    both = [run(postgres_url, rows.namespace, Change("default", 5), batch=1) for _ in range(2)]
    assert sorted(await asyncio.gather(*both)) == [False, True]
    await rows.check_places()
    async with await connect_lease(postgres_url, schema=SCHEMA) as other:
        resharding = Resharding(
            other, schema=SCHEMA, namespace=rows.namespace, say=print, forget_streams=_nothing, wait=10.0
        )
        assert not await resharding.run(Change("default", 5))
        with pytest.raises(EntityQError, match=r"Another `entityq reshard` of the namespace .* is running"):
            await run(postgres_url, rows.namespace, Change("default", 7), wait=0.3)


async def _nothing(shards: Sequence[Shard]) -> None:
    del shards


async def test_what_does_not_exist_is_refused(rows: Rows, postgres_url: str) -> None:
    with pytest.raises(EntityQError, match="no shard group defualt"):
        await run(postgres_url, rows.namespace, Change("defualt", 5))
    with pytest.raises(EntityQError, match="no entity type Acount"):
        await run(postgres_url, rows.namespace, Change("default", type="Acount"))
    assert not await run(postgres_url, rows.namespace, Change("default", SHARDS))
    assert not await run(postgres_url, rows.namespace, Change("default", type="Account"))
    await rows.check_places()


async def test_another_namespaces_rows_stay_where_they_are(rows: Rows, postgres_url: str) -> None:
    await ensure_cluster(rows.connection, "other", 7)
    facts = await register_types(rows.connection, "other", {"Account": "default"})
    hash_ = signed64(entity_hash("a"))
    stored = await insert_requests(
        rows.connection, "other", [NewRequest(7000, Address("Account", "a"), "m", None, b"h", b"e")]
    )
    await rows.send(["a"], answered=False)
    await run(postgres_url, rows.namespace, Change("default", 5))
    place = b"SELECT shard_id FROM pending WHERE request_id = 7000 AND entity_hash = %(hash)s"
    assert await fetch_value(rows.connection, place, {"hash": hash_}) == stored[7000].shard_id
    assert await load_facts(rows.connection, "other") == facts


async def test_a_new_group_does_not_get_the_ids_that_are_on_their_way(rows: Rows, postgres_url: str) -> None:
    await rows.send(["a"], answered=True)
    with pytest.raises(psycopg.OperationalError):
        await run(postgres_url, rows.namespace, Change("default", 50), statements=16, batch=1)
    facts = await register_types(rows.connection, rows.namespace, {"Log": "logs"})
    await run(postgres_url, rows.namespace, Change("default", 50))
    after = await rows.check_places()
    default, logs = after.groups["default"], facts.groups["logs"]
    assert default.first_shard + default.shards <= logs.first_shard


# ----- the lease of a closed group


@pytest.fixture
async def cluster(postgres_url: str, namespace: str) -> AsyncIterator[Cluster]:
    async with open_cluster(postgres_url, namespace, groups=("default", "mail")) as cluster:
        yield cluster


async def test_a_closed_groups_shards_and_old_ones_are_not_leased(
    cluster: Cluster, postgres_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even by a session whose facts are old, and with nobody holding the locks."""
    session = await cluster.session(groups=("default", "mail"))
    default, mail = (cluster.facts.groups[name].first_shard for name in ("default", "mail"))
    async with await connect(postgres_url, schema=SCHEMA) as connection:
        await connection.execute(b"UPDATE shard_group SET open = false WHERE name = 'default'")
        assert set(await session.acquire([default, mail])) == {mail}
        await connection.execute(b"UPDATE shard_group SET open = true WHERE name = 'default'")
        assert set(await session.acquire([default])) == {default}
        await session.release([default])
        assert await run(postgres_url, namespace, Change("default", 5))
        assert await session.acquire([default]) == {}
        assert await session.held() == {mail}


def test_a_change_says_what_it_is() -> None:
    assert Change("default", 5).command == "entityq reshard --group default --shards 5"
    assert Change("slow", type="Mail").command == "entityq reshard --type Mail --group slow"
