"""Requests in the transactions of psycopg, SQLAlchemy and Django: with the transaction, or not at all."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import Session

from entityq import EntityQ, PrimaryKeyConflict, UnsafeConfiguration
from entityq.integrations import django, sqlalchemy
from examples.bank import Account
from tests.integrations.transactions import OPEN, Transaction, configure_django
from tests.support.live import LiveCluster
from tests.support.probe import Probe


@pytest.fixture(params=list(OPEN))
async def transaction(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[Transaction]:
    opened = await OPEN[request.param](postgres_url)
    try:
        yield opened
    finally:
        await opened.close()


async def test_a_request_is_sent_by_the_commit_and_without_a_sweep(
    cluster: LiveCluster, app: EntityQ, transaction: Transaction
) -> None:
    probe = cluster.actor(app, Probe)
    await cluster.start(app)
    await transaction.execute("CREATE TABLE orders (id integer)")
    await transaction.execute("INSERT INTO orders VALUES (1)")
    first = await transaction.send(probe.at("a").note.request("first"))
    await transaction.inner()
    await transaction.send(probe.at("a").note.request("undone"))
    await transaction.undo_inner()
    sent = await transaction.send_many([probe.at("a").note.request(str(n)) for n in range(3)])
    # An ask in between is answered: it would find what is there to be found.
    assert await probe.at("b").note("elsewhere") == 1
    assert cluster.stage.journal == ["note b elsewhere"]
    await transaction.commit()
    assert await first == 1
    assert [await each.receipt for each in sent] == [2, 3, 4]
    assert cluster.stage.lines("note a ") == ["first", "0", "1", "2"]
    assert await cluster.rows("SELECT id FROM public.orders") == [1]
    assert await cluster.pending() == 0


def test_another_database_is_refused(postgres_url: str) -> None:
    request = Account.at("a").deposit.request(1, reference="r")
    with (
        Session(create_engine("sqlite://", poolclass=NullPool)) as session,
        pytest.raises(UnsafeConfiguration, match="a transaction of sqlite"),
    ):
        sqlalchemy.send(session, request)
    configure_django(postgres_url)
    with pytest.raises(UnsafeConfiguration, match="database other, which is sqlite"):
        django.send(request, using="other")


async def test_nothing_is_sent_by_a_rollback(
    cluster: LiveCluster, app: EntityQ, transaction: Transaction
) -> None:
    probe = cluster.actor(app, Probe)
    await cluster.start(app)
    await transaction.send(probe.at("a").add.request(1, "k"))
    await transaction.send_many([probe.at("a").note.request("x")])
    await transaction.rollback()
    assert await cluster.requests() == 0
    # The key is free.
    receipt = await transaction.send(probe.at("a").add.request(2, "k"))
    assert not receipt.duplicate
    await transaction.commit()
    assert await receipt == 2


async def test_known_keys(cluster: LiveCluster, app: EntityQ, transaction: Transaction) -> None:
    probe = cluster.actor(app, Probe)
    await cluster.start(app)
    account = probe.at("a")
    known = await account.add.send(1, "known")
    first = await transaction.send(account.add.request(2, "new"))
    with pytest.raises(PrimaryKeyConflict, match="another payload before") as conflict:
        await transaction.send(account.add.request(9, "known"))
    assert conflict.value.request_id == known.request_id
    # The transaction goes on.
    sent = await transaction.send_many(
        [
            account.add.request(1, "known"),
            account.add.request(2, "new"),
            account.add.request(3, "third"),
            account.add.request(9, "third"),
        ]
    )
    assert [each.status for each in sent] == ["duplicate", "duplicate", "accepted", "conflict"]
    assert sent[0].receipt.request_id == known.request_id
    assert sent[1].receipt.request_id == first.request_id
    await transaction.commit()
    assert [await each.receipt for each in sent[:3]] == [1, 3, 6]
