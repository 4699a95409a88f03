"""What an operator does with requests that were given up."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest

from entityq import EntityDefect, EntityQ, RetryPolicy, message
from tests.support.live import LiveCluster
from tests.support.stage import Actor


class Ledger(Actor):
    broken: ClassVar[bool] = True
    entries: list[str] = []

    @message(primary_key="key")
    async def enter(self, key: str) -> list[str]:
        self._stage.tell(f"enter {key} {self.context.attempt}")
        if self.broken:
            raise ConnectionError("postgresql://me:hunter2@bank is down")
        self.entries.append(key)
        return self.entries


@pytest.fixture(autouse=True)
def broken() -> None:
    Ledger.broken = True


async def given_up(ledger: Ledger, key: str) -> int:
    receipt = await ledger.enter.send(key)
    with pytest.raises(EntityDefect):
        await receipt
    return receipt.request_id


async def opened(cluster: LiveCluster) -> tuple[EntityQ, Ledger]:
    app = cluster.app()
    ledger = cluster.actor(app, Ledger).at("a")
    await cluster.start(app)
    return app, ledger


async def test_they_are_listed_by_type_time_and_error(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    first, second = await given_up(ledger, "x"), await given_up(ledger, "y")
    listed = await app.dead_letters()
    assert [letter.request_id for letter in listed] == [second, first]
    assert {(str(letter.address), letter.message, letter.attempts) for letter in listed} == {
        ("Ledger/a", "enter", 1)
    }
    assert await app.dead_letters(type="Ledger", error="IS DOWN", most=1) == listed[:1]
    assert await app.dead_letters(error="connectionerror", since=listed[0].died_at) == listed[:1]
    assert await app.dead_letters(type="Other") == []
    assert await app.dead_letters(error="%") == []
    assert await app.dead_letters(since=datetime.now(UTC) + timedelta(hours=1)) == []
    with pytest.raises(ValueError, match="time zone"):
        await app.dead_letters(since=datetime(2026, 1, 1))  # noqa: DTZ001


async def test_the_cause_has_no_password(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    (letter,) = await app.dead_letters.show(await given_up(ledger, "x"))
    assert letter.error == letter.cause["message"] == "postgresql://***@bank is down"
    assert "hunter2" not in str(letter)


async def test_a_requeued_one_runs_again_and_its_repeats_join_it(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    Ledger.broken = False
    handled = await app.dead_letters.requeue(request_id, by="me")
    assert (handled.done, handled.refused) == ((request_id,), {})
    again = await ledger.enter.send("x")
    assert (again.request_id, again.duplicate) == (request_id, True)
    assert await again == ["x"]
    assert await ledger.enter("x") == ["x"]
    assert cluster.stage.journal == ["enter x 1", "enter x 1"]
    assert await app.dead_letters() == []
    (history,) = await app.dead_letters.show(request_id)
    assert history.requeued_by == "me"
    assert history.requeued_at is not None


async def test_it_comes_behind_what_the_entity_has_now(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    Ledger.broken = False
    assert await ledger.enter("y") == ["y"]
    await app.dead_letters.requeue(request_id)
    assert await ledger.enter("x") == ["y", "x"]


async def test_one_that_dies_again_is_another_dead_letter(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    await app.dead_letters.requeue(request_id)
    with pytest.raises(EntityDefect):
        await ledger.enter("x")
    assert [letter.request_id for letter in await app.dead_letters()] == [request_id]
    assert len(await app.dead_letters.show(request_id)) == 2


async def test_only_what_is_a_dead_letter_now_is_requeued(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    Ledger.broken = False
    answered = await ledger.enter.send("y")
    await answered
    both = await asyncio.gather(
        *(app.dead_letters.requeue(request_id, answered.request_id) for _ in range(2))
    )
    assert sorted(handled.done for handled in both) == [(), (request_id,)]
    assert await ledger.enter("x") == ["y", "x"]
    refused = (await app.dead_letters.requeue(request_id, answered.request_id)).refused
    assert refused == {request_id: "it was requeued before", answered.request_id: "it is no dead letter"}
    assert cluster.stage.journal.count("enter x 1") == 2


async def test_not_while_its_group_is_closed(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    await cluster.rows("UPDATE shard_group SET open = false")
    handled = await app.dead_letters.requeue(request_id)
    assert handled.done == ()
    assert "closed while `entityq reshard`" in handled.refused[request_id]
    assert [letter.request_id for letter in await app.dead_letters()] == [request_id]
    await cluster.rows("UPDATE shard_group SET open = true")


async def test_a_discarded_one_stays_answered(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    Ledger.broken = False
    assert (await app.dead_letters.discard(request_id)).done == (request_id,)
    assert await app.dead_letters.show(request_id) == []
    with pytest.raises(EntityDefect):
        await ledger.enter("x")
    assert (await app.dead_letters.discard(request_id)).refused == {request_id: "it is no dead letter"}


async def test_who_forgets_an_entity_forgets_its_dead_letters(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    await ledger.forget()
    assert await app.dead_letters.show(request_id) == []
    assert (await app.dead_letters.requeue(request_id)).refused == {request_id: "it is no dead letter"}


async def test_from_sync_code(cluster: LiveCluster) -> None:
    app, ledger = await opened(cluster)
    request_id = await given_up(ledger, "x")
    Ledger.broken = False

    def handle() -> None:
        assert [letter.request_id for letter in app.dead_letters.list_blocking()] == [request_id]
        assert len(app.dead_letters.show_blocking(request_id)) == 1
        assert app.dead_letters.requeue_blocking(request_id).done == (request_id,)
        assert app.dead_letters.discard_blocking(request_id).done == ()

    await asyncio.to_thread(handle)


async def test_an_owner_that_remembers_the_answer_runs_it_again_all_the_same(cluster: LiveCluster) -> None:
    """What came from the outbox is remembered for a while, so that a late read does not bring it again."""
    app = cluster.app()
    twice = RetryPolicy(initial=0.01, factor=1.0, maximum=0.01, attempts=2)
    ledger = cluster.actor(app, Ledger, retry=twice).at("a")
    await cluster.start(app)
    request_id = await given_up(ledger, "x")
    Ledger.broken = False
    await app.dead_letters.requeue(request_id)
    assert await ledger.enter("x") == ["x"]
    assert cluster.stage.journal == ["enter x 1", "enter x 2", "enter x 1"]
