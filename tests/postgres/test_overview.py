"""What `entityq status` and `entityq result` read: of one namespace, whoever else is in the database."""

import pytest

from entityq.address import Shard, lock_class
from entityq.postgres.connect import connect
from entityq.postgres.overview import Stranger, find_request, read_namespaces, read_overview
from tests.support.leases import open_cluster
from tests.support.servers import SCHEMA, SHARDS


async def test_held_shards_by_group_and_runner(empty_postgres_url: str) -> None:
    async with (
        open_cluster(empty_postgres_url, "one", groups=("default", "slow")) as cluster,
        open_cluster(empty_postgres_url, "two") as other,
        await connect(empty_postgres_url, schema=SCHEMA) as connection,
    ):
        first = await cluster.session(name="first", groups=("default", "slow"))
        second = await cluster.session(name="second")
        foreign = await other.session(name="foreign")
        default, slow = cluster.facts.groups["default"], cluster.facts.groups["slow"]
        await first.acquire([default.first_shard, default.first_shard + 1, slow.first_shard])
        await second.acquire([default.first_shard + 2])
        await foreign.acquire([other.facts.groups["default"].first_shard])

        overview = await read_overview(connection, SCHEMA, "one")

        assert [(runner.name, runner.held) for runner in overview.runners] == [
            ("first", {"default": 2, "slow": 1}),
            ("second", {"default": 1}),
        ]
        assert all(runner.joined_at for runner in overview.runners)
        assert [(group.name, group.shards, group.held) for group in overview.groups] == [
            ("default", SHARDS, 3),
            ("slow", SHARDS, 1),
        ]
        assert await read_namespaces(connection) == ["one", "two"]


@pytest.mark.parametrize(("namespace", "found"), [("one", True), ("two", False)])
async def test_a_request_belongs_to_its_namespace(
    empty_postgres_url: str, namespace: str, found: bool
) -> None:
    async with (
        open_cluster(empty_postgres_url, "one") as cluster,
        open_cluster(empty_postgres_url, "two"),
        await connect(empty_postgres_url, schema=SCHEMA) as connection,
    ):
        shard_id = cluster.facts.groups["default"].first_shard + 3
        await connection.execute(
            "INSERT INTO outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message, payload_hash,"
            " envelope) VALUES (7, %s, 1, 0, 'Account', 'a', 'deposit', '', '')",
            [shard_id],
        )

        request = await find_request(connection, namespace, 7)

        assert (request is not None) is found
        if request is not None:
            assert (str(request.address), request.shard) == ("Account/a", Shard("default", 3))
            assert request.reply is None


async def test_who_holds_shards_and_is_no_runner(empty_postgres_url: str) -> None:
    async with (
        open_cluster(empty_postgres_url, "one") as cluster,
        await connect(empty_postgres_url, schema=SCHEMA, application_name="a migration") as stranger,
    ):
        runner = await cluster.session()
        await runner.acquire([cluster.facts.groups["default"].first_shard + 5])
        class_ = lock_class(SCHEMA, "one", "shard", "default")
        await stranger.execute("SELECT pg_advisory_lock(%s, n) FROM generate_series(0, 2) n", [class_])

        overview = await read_overview(stranger, SCHEMA, "one")

        pid = stranger.info.backend_pid
        assert overview.strangers == (Stranger(pid, "a migration", {"default": 3}),)
        assert [runner.held for runner in overview.runners] == [{"default": 1}]
        assert [group.held for group in overview.groups] == [4]
        await stranger.execute("SELECT pg_advisory_unlock_all()")
        assert (await read_overview(stranger, SCHEMA, "one")).strangers == ()
