"""The same bank twice: in process, and on a cluster with real servers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pytest

from entityq import EntityQ, testing
from entityq.task import Task
from tests.conformance import bank as entities
from tests.conformance.bank import Account, Ledger
from tests.support.live import live_cluster
from tests.support.stage import Actor, Stage

A = TypeVar("A", bound=Actor)

CAPACITY = 3


@dataclass(frozen=True)
class Bank:
    """`account` and `ledger` give handles by id."""

    stage: Stage
    account: Callable[[str], Account]
    ledger: Callable[[str], Ledger]
    add: Task[[int, int], int, int]


@dataclass(frozen=True)
class Types:
    account: type[Account]
    ledger: type[Ledger]
    add: Task[[int, int], int, int]


def new_type(app: EntityQ, cls: type[A], stage: Stage, **options: Any) -> type[A]:
    subclass = type(cls.__name__, (cls,), {"_stage": stage, "__module__": cls.__module__})
    return app.entity(**options)(cast("type[A]", subclass))


def new_types(app: EntityQ, stage: Stage) -> Types:
    account = new_type(app, Account, stage, mailbox_capacity=CAPACITY, concurrency=2)
    ledger = new_type(app, Ledger, stage)
    add: Task[[int, int], int, int] = app.task(entities.add)
    account.ledgers, ledger.accounts, account.add_task = ledger, account, add
    return Types(account, ledger, add)


@asynccontextmanager
async def in_process() -> AsyncGenerator[Bank]:
    stage = Stage()
    types = new_types(EntityQ("conformance", ask_timeout=10.0), stage)
    async with testing.client(types.account, types.ledger, types.add) as client:
        yield Bank(
            stage,
            client.at,
            lambda entity_id: client.at(entity_id, types.ledger),
            client.task(types.add),
        )


@asynccontextmanager
async def on_a_cluster(postgres_url: str, redis_url: str, namespace: str) -> AsyncGenerator[Bank]:
    async with live_cluster(postgres_url, redis_url, namespace) as cluster:
        app = cluster.app()
        types = new_types(app, cluster.stage)
        await cluster.start(app)
        try:
            yield Bank(cluster.stage, types.account.at, types.ledger.at, types.add)
        finally:
            await asyncio.to_thread(app.close_blocking)


@pytest.fixture(params=["in process", "cluster"])
def opening(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Bank]:
    """Not async: the fixtures that it asks for have event loops of their own."""
    if request.param == "in process":
        return in_process()
    names = ("postgres_url", "redis_url", "namespace")
    return on_a_cluster(*(request.getfixturevalue(name) for name in names))


@pytest.fixture
async def bank(opening: AbstractAsyncContextManager[Bank]) -> AsyncIterator[Bank]:
    async with opening as opened:
        yield opened
