"""The statements of signals, against everybody who has the request at the same moment."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

from entityq.address import Address
from entityq.envelope import NOBODY, Envelope
from entityq.errors import PersistenceError
from entityq.postgres.connect import Connection, connect
from entityq.postgres.facts import register_types
from entityq.postgres.outbox import NewRequest, Stored, insert_requests
from entityq.postgres.signals import parse_signalled, signals_channel, store_signal
from entityq.runner.commit import Tenure
from entityq.runner.request import Request
from entityq.runner.suspensions import Suspension, Suspensions
from entityq.signal_outcome import SignalOutcome
from entityq.signal_token import SignalPlace

ID = 7
ADDRESS = Address("T", "a b\u2028c")
GO = SignalPlace(ID, "go")


@dataclass
class Scene:
    """One request of a cluster, and a session that owns its shard."""

    connection: Connection
    other: Connection
    namespace: str
    stored: Stored
    incarnation: int = 1

    async def execute(self, query: bytes, parameters: Any) -> list[tuple[Any, ...]]:
        cursor = await self.other.execute(query, parameters)
        return await cursor.fetchall() if cursor.description else []

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        return await self.execute(query.encode(), None)

    async def signal(self, value: bytes = b"1", *, again: bool = False) -> SignalOutcome:
        return await store_signal(self.connection, self.namespace, GO, value, again=again)

    async def suspend(self, seconds: float | None = None, *, parked: bool = False, epoch: int = 1) -> object:
        request = Request(
            Envelope(ID, ADDRESS, "m", b"", True, NOBODY), self.stored.shard_id, self.stored.seq, None
        )
        tenure = Tenure(1, self.stored.shard_id, epoch)
        suspensions = Suspensions(self, MappingProxyType({self.stored.shard_id: 1}))
        (outcome,) = await suspensions.flush([Suspension(tenure, request, GO.name, seconds, parked)])
        return outcome


@pytest.fixture
async def scene(postgres_url: str, namespace: str) -> AsyncIterator[Scene]:
    async with (
        await connect(postgres_url, schema="entityq") as connection,
        await connect(postgres_url, schema="entityq") as other,
    ):
        await register_types(connection, namespace, {ADDRESS.type: "default"})
        new = NewRequest(ID, ADDRESS, "m", None, b"", b"")
        stored = await insert_requests(connection, namespace, [new])
        yield Scene(connection, other, namespace, stored[ID])


@pytest.mark.parametrize("parked", [False, True])
async def test_a_signal_lets_the_request_go_on_and_tells_its_owner(scene: Scene, parked: bool) -> None:
    told: list[str] = []
    scene.other.add_notify_handler(lambda notification: told.append(notification.payload))
    await scene.other.execute(f'LISTEN "{signals_channel(scene.namespace)}"'.encode())
    assert await scene.suspend(parked=parked) is False
    assert await scene.rows("SELECT suspended, resume_at > now() FROM pending") == [(True, True)][parked:]
    assert await scene.rows("SELECT suspended, due_at > now() FROM timer") == [(True, True)][: int(parked)]
    assert await scene.signal() is SignalOutcome.SIGNALLED
    assert await scene.rows("SELECT suspended, resume_at FROM pending") == [(False, None)][parked:]
    assert await scene.rows("SELECT suspended, due_at <= now() FROM timer") == [(False, True)][: int(parked)]
    assert [parse_signalled(payload) for payload in told] == [(scene.stored.shard_id, ADDRESS)][parked:]


async def test_the_first_value_stands_and_a_repeat_after_a_lost_answer_is_its_own(scene: Scene) -> None:
    assert await scene.signal(b"1") is SignalOutcome.SIGNALLED
    assert await scene.signal(b"2") is SignalOutcome.ALREADY
    assert await scene.signal(b"1") is SignalOutcome.ALREADY
    assert await scene.signal(b"1", again=True) is SignalOutcome.SIGNALLED
    assert await scene.signal(b"2", again=True) is SignalOutcome.ALREADY
    assert await scene.rows("SELECT value FROM signal") == [(b"1",)]
    assert await scene.suspend() is True
    assert await scene.rows("SELECT suspended, resume_at FROM pending") == [(False, None)]


async def test_a_request_of_another_cluster_is_unknown(scene: Scene) -> None:
    await scene.rows("INSERT INTO cluster (namespace, format_version, default_shards) VALUES ('other', 1, 1)")
    assert await store_signal(scene.connection, "other", GO, b"1") is SignalOutcome.UNKNOWN
    nobody = SignalPlace(ID + 1, "go")
    assert await store_signal(scene.connection, scene.namespace, nobody, b"1") is SignalOutcome.UNKNOWN
    assert await scene.rows("SELECT * FROM signal") == []


async def test_while_a_reshard_moves_the_request_nothing_is_stored(scene: Scene) -> None:
    """Its pending row may be in another shard than its outbox row says: nobody could be woken."""
    assert await scene.suspend() is False
    await scene.rows("UPDATE shard_group SET open = false")
    with pytest.raises(PersistenceError, match="has closed the group default"):
        await scene.signal()
    assert await scene.rows("SELECT value FROM signal") == [(None,)]
    await scene.rows("UPDATE shard_group SET open = true")
    assert await scene.signal() is SignalOutcome.SIGNALLED


async def test_what_is_cancelled_or_not_owned_is_not_suspended(scene: Scene) -> None:
    assert await scene.suspend(epoch=2) is None
    await scene.rows("UPDATE pending SET cancelled = true")
    assert await scene.suspend() is None
    assert await scene.suspend(parked=True) is None
    assert await scene.rows("SELECT count(*) FROM pending WHERE NOT suspended") == [(1,)]


async def test_waiting_is_no_failure(scene: Scene) -> None:
    await scene.rows("UPDATE pending SET retries = 2, failing_since = now(), attempts = 1, started = 5")
    assert await scene.suspend(60.0) is False
    assert await scene.rows(
        "SELECT retries, failing_since, attempts, started, resume_at < now() + interval '61 s' FROM pending"
    ) == [(0, None, 1, None, True)]
