"""The contracts of the outbox: STO of the checklist (see README.md here)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from entityq.address import Address
from entityq.envelope import Envelope
from entityq.postgres.backlog import Backlog, Unread
from entityq.postgres.connect import Connection, connect, open_pool
from entityq.postgres.facts import register_types
from entityq.postgres.migrate import migrate
from entityq.postgres.outbox import NewRequest, Stored, insert_requests, read_conflicts
from entityq.primary_key import key_digest
from entityq.reply import Outcome, Reply
from entityq.runner.commit import Applied, Commit, NotApplied, Tenure
from entityq.runner.committer import Committer
from entityq.runner.request import Request
from tests.support.live import LiveCluster
from tests.support.places import neighbour, shard_of
from tests.support.probe import Probe
from tests.support.servers import SCHEMA, SHARDS

A = Address("Probe", "a")
B = Address("Probe", neighbour("a"))  # in the same shard
SHARD = shard_of("a")


@dataclass
class Outbox:
    """A connection that sends and commits, and the reads of a runner."""

    connection: Connection
    backlog: Backlog
    namespace: str
    ids: "count[int]" = field(default_factory=lambda: count(1000, -1))  # ids fall while seq rises
    incarnation: int = 1

    def request(self, address: Address = A, *, key: str | None = None, payload: bytes = b"p") -> NewRequest:
        request_id = next(self.ids)
        envelope = Envelope(request_id, address, "note", payload, True, 1, primary_key=key).encode()
        digest = None if key is None else key_digest(self.namespace, address, "note", key)
        return NewRequest(request_id, address, "note", digest, payload.ljust(32, b"."), envelope)

    async def save(self, *requests: NewRequest) -> dict[int, Stored]:
        return await insert_requests(self.connection, self.namespace, requests)

    async def unanswered(self, *, after: int = 0, page: int = 100) -> list[int]:
        unread = Unread(SHARD, after, await self.backlog.position())
        rows = await self.backlog.read_pending([unread], page)
        return [row.request_id for row in rows.get(SHARD, [])]

    async def answer(self, request: NewRequest, place: Stored, value: bytes = b"\x01") -> object:
        envelope = Envelope(request.request_id, request.address, "note", b"p", True, 1)
        reply = Reply(request.request_id, Outcome.SUCCESS, "", value)
        turn = Request(envelope, place.shard_id, place.seq, None)
        commit = Commit(Tenure(1, place.shard_id, 1), turn, reply, reply.encode())
        (outcome,) = await Committer(self, self.namespace, {place.shard_id: 1}).flush([commit])
        return outcome

    async def execute(
        self, query: bytes, parameters: Mapping[str, object] | None = None
    ) -> Sequence[tuple[Any, ...]]:
        return await (await self.connection.execute(query, parameters)).fetchall()


@pytest.fixture
async def outbox(postgres_url: str, namespace: str) -> AsyncIterator[Outbox]:
    async with (
        await connect(postgres_url, schema=SCHEMA, application_name="tests") as connection,
        open_pool(postgres_url, schema=SCHEMA, size=1) as pool,
    ):
        await register_types(connection, namespace, {"Probe": "default"})
        yield Outbox(connection, Backlog(pool), namespace)


async def test_sto_01_a_saved_request_is_in_the_next_read_of_its_shard(outbox: Outbox) -> None:
    request = outbox.request()
    stored = await outbox.save(request)
    assert stored[request.request_id].shard_id == SHARD
    position = await outbox.backlog.position()
    unread = [Unread(SHARD + 1, 0, position), Unread(SHARD, 0, position)]
    ((shard_id, (row,)),) = (await outbox.backlog.read_pending(unread, 100)).items()
    assert (shard_id, row.request_id, row.envelope) == (SHARD, request.request_id, request.envelope)


async def test_sto_02_a_second_save_of_a_key_finds_the_first(outbox: Outbox) -> None:
    first, second = outbox.request(key="k"), outbox.request(key="k")
    place = (await outbox.save(first))[first.request_id]
    assert await outbox.save(second) == {}
    (known,) = await read_conflicts(outbox.connection, [second])
    assert (known.request_id, known.reply) == (first.request_id, None)
    await outbox.answer(first, place, b"\x07")
    (known,) = await read_conflicts(outbox.connection, [second])
    assert known.reply == Reply(first.request_id, Outcome.SUCCESS, "", b"\x07").encode()


async def test_sto_04_a_request_is_answered_once(outbox: Outbox) -> None:
    request = outbox.request(key="k")
    place = (await outbox.save(request))[request.request_id]
    assert await outbox.answer(request, place, b"\x01") == Applied([])
    assert isinstance(await outbox.answer(request, place, b"\x02"), NotApplied)
    (known,) = await read_conflicts(outbox.connection, [request])
    assert known.reply == Reply(request.request_id, Outcome.SUCCESS, "", b"\x01").encode()


async def test_sto_05_keys_of_any_length_are_known_again(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    long, almost = "k" * 10_000, "k" * 10_000 + "l"
    assert [await probe.add(1, long), await probe.add(1, long), await probe.add(1, almost)] == [1, 1, 2]
    assert set(await cluster.rows("SELECT length(key_digest) FROM outbox")) == {16}


async def test_sto_06_an_answered_request_is_not_read_again(outbox: Outbox) -> None:
    first, second = outbox.request(), outbox.request()
    stored = await outbox.save(first, second)
    await outbox.answer(first, stored[first.request_id])
    assert await outbox.unanswered() == [second.request_id]
    swept = await outbox.backlog.sweep({SHARD: 0}, await outbox.backlog.position(), 100)
    assert [row.request_id for row in swept[SHARD]] == [second.request_id]


async def test_sto_07_requests_are_read_in_the_order_of_saving(outbox: Outbox) -> None:
    """Neither by request id nor by key, and also across two reads; an index has that order."""
    requests = [outbox.request(key=key) for key in "zmaybxcwdv"]
    stored = await outbox.save(*requests)
    in_order = [request.request_id for request in requests]
    assert await outbox.unanswered(page=4) == in_order[:4]
    assert await outbox.unanswered(after=stored[in_order[3]].seq) == in_order[4:]
    plan = await outbox.execute(
        b"SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'pending'"
    )
    assert any("(shard_id, seq)" in str(row[0]) for row in plan)


async def test_sto_08_reading_claims_nothing(outbox: Outbox) -> None:
    """And STO-15. What was read twice is told apart by the intake, not by the store."""
    request = outbox.request()
    await outbox.save(request)
    assert await outbox.unanswered() == await outbox.unanswered() == [request.request_id]


async def test_sto_09_a_page_has_as_many_as_asked_for(outbox: Outbox) -> None:
    requests = [outbox.request() for _ in range(5)]
    stored = await outbox.save(*requests)
    ids = [request.request_id for request in requests]
    assert await outbox.unanswered(page=2) == ids[:2]
    assert await outbox.unanswered(page=2, after=stored[ids[1]].seq) == ids[2:4]
    assert await outbox.unanswered(page=2, after=stored[ids[3]].seq) == ids[4:]


async def test_sto_10_an_entitys_read_has_only_its_own(outbox: Outbox) -> None:
    mine, other = outbox.request(A), outbox.request(B)
    await outbox.save(other, mine)
    rows = await outbox.backlog.read_pending_of_entity(SHARD, A, 10)
    assert [row.request_id for row in rows] == [mine.request_id]
    # The same hash, another type or id: the hash only finds the rows faster.
    await outbox.execute(b"UPDATE outbox SET entity_id = 'x' WHERE entity_id = 'a' RETURNING 1")
    assert await outbox.backlog.read_pending_of_entity(SHARD, A, 10) == []
    assert await outbox.backlog.read_pending_of_entity(SHARD, Address("Other", "a"), 10) == []


async def test_sto_11_no_shards_are_not_all_shards(outbox: Outbox) -> None:
    await outbox.save(outbox.request())
    assert await outbox.backlog.sweep({}, await outbox.backlog.position(), 100) == {}
    assert await outbox.save() == {}
    assert await outbox.backlog.load_entities([]) == {}


async def test_sto_16_forgetting_an_entity_frees_its_keys(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    await cluster.start(app)
    assert [await probe.at("a").add(5, "k"), await probe.at("a").add(5, "k")] == [5, 5]
    assert await probe.at("b").add(7, "k") == 7
    await probe.at("a").forget()
    assert await cluster.rows("SELECT entity_id FROM entity") == ["b"]
    assert await cluster.rows(
        "SELECT count(*) FROM outbox WHERE entity_id = 'a' AND key_digest IS NOT NULL"
    ) == [0]
    # Another payload is no conflict either, and the state begins anew.
    assert await probe.at("a").add(6, "k") == 6
    assert await probe.at("b").add(7, "k") == 7
    assert cluster.stage.lines("add a ") == ["k", "k"]


async def test_sto_20_namespaces_of_one_database_do_not_meet(
    outbox: Outbox, postgres_url: str, cluster: LiveCluster
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    async with await connect(postgres_url, schema=SCHEMA, application_name="tests") as connection:
        await migrate(connection, schema=SCHEMA, namespace="other", shards=SHARDS)
        await register_types(connection, "other", {"Probe": "default"})
        theirs = Outbox(connection, outbox.backlog, "other")
        stored = await theirs.save(theirs.request(key="k"))
    assert await probe.add(1, "k") == 1
    (place,) = stored.values()
    assert place.shard_id != SHARD
    assert await cluster.pending() == 1
