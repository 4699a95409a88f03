"""Calls that mypy and pyright must accept, with exactly these types. Checked, never run."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self, assert_type

from psycopg import AsyncConnection, Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from entityq import (
    Broadcast,
    CancelOutcome,
    Entity,
    EntityQ,
    EntityStatus,
    Failure,
    Receipt,
    Request,
    Sent,
    SignalOutcome,
    StreamReceipt,
    message,
    upcast,
)
from entityq.integrations import django, psycopg, sqlalchemy

app = EntityQ("bank")


class InsufficientFunds(Failure):
    balance: int
    currency: str = "EUR"


@dataclass
class Transfer:
    amount: int
    to: str


@app.entity
class Account(Entity):
    balance: int = 0

    @message(primary_key="reference")
    async def deposit(self, amount: int, reference: str) -> int:
        self.balance += amount
        return self.balance

    @message
    def withdraw(self, amount: int, *, note: str = "") -> int:
        if amount > self.balance:
            raise InsufficientFunds(balance=self.balance)
        self.balance -= amount
        return self.balance

    @message
    async def transfer(self, transfer: Transfer) -> Transfer:
        other = Account.at(transfer.to)
        assert_type(other, Account)
        await other.deposit.send(transfer.amount, reference=str(self.context.request_id))
        assert_type(self.context.signal_token("approval"), str)
        assert_type(await self.context.wait_for("approval", timeout=5), Any)
        assert_type(await self.context.wait_for("approval", Transfer), Transfer)
        assert_type(await self.context.wait_for("approval", list[int]), list[int])
        assert_type(self.context.wait_for_blocking("approval", int), int)
        assert_type(Account.deposit.handler(self, 1, "r"), Any)
        return transfer

    @message(persisted=False, concurrent=True, timeout=1.5, name="look")
    def read(self) -> int:
        return self.balance

    @message(timeout=2)
    async def close(self) -> None: ...


@app.entity(state_version=2)
class Versioned(Entity):
    cents: int = 0

    @upcast(1)
    @staticmethod
    def to_cents(fields: dict[str, Any]) -> dict[str, Any]:
        return {"cents": fields["balance"] * 100}


assert_type(Versioned.to_cents({"balance": 1}), dict[str, Any])


@app.entity(type="Book", shard_group="slow", mailbox_capacity=10, max_idle=60, concurrency=4)
class Ledger(Entity):
    lines: list[str] = []


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(name="waits", timeout=3)
async def wait(seconds: timedelta) -> float:
    return seconds.total_seconds()


async def asks() -> None:
    account = Account.at("acct-1")
    assert_type(account, Account)
    assert_type(account.id, str)
    assert_type(account.balance, int)
    assert_type(await account.deposit(10, reference="r-1"), int)
    assert_type(await account.deposit(amount=10, reference="r-1"), int)
    assert_type(await account.withdraw(1), int)
    assert_type(await account.withdraw(1, note="rent"), int)
    assert_type(await account.transfer(Transfer(1, "acct-2")), Transfer)
    assert_type(await account.read(), int)
    await account.close()
    assert_type(await account.status(), EntityStatus)
    await account.forget()
    assert_type(Ledger.at("2026"), Ledger)


async def sends() -> None:
    account = Account.at("acct-1")
    receipt = await account.deposit.send(10, reference="r-1")
    assert_type(receipt, Receipt[int])
    assert_type(await receipt, int)
    assert_type(receipt.request_id, int)
    assert_type(await receipt.cancel(), CancelOutcome)
    assert_type(await app.signal("token", Transfer(1, "a")), SignalOutcome)
    assert_type(await (await account.close.send()), None)


def sync_code() -> None:
    account = Account.at("acct-1")
    assert_type(account.deposit.delay(10, reference="r-1"), Receipt[int])
    assert_type(account.deposit.delay(10, reference="r-1").get(timeout=5), int)
    assert_type(account.withdraw.call(10), int)


async def batches() -> None:
    account = Account.at("acct-1")
    request = account.deposit.request(10, reference="r-1")
    assert_type(request, Request[int])
    assert_type(add.request(2), Request[int])
    sent = await app.send_many([request, account.withdraw.options(timeout=1).request(1)])
    assert_type(sent, list[Sent[int]])
    assert_type(await sent[0].receipt, int)
    assert_type(app.delay_many([account.close.request()]), list[Sent[None]])


async def transactions(
    connection: Connection[Any],
    async_connection: AsyncConnection[Any],
    session: Session,
    async_session: AsyncSession,
) -> None:
    request = Account.at("acct-1").deposit.request(10, reference="r-1")
    assert_type(psycopg.send(connection, request), Receipt[int])
    assert_type(await psycopg.send(async_connection, request), Receipt[int])
    assert_type(await psycopg.send_many(async_connection, [request]), list[Sent[int]])
    assert_type(sqlalchemy.send(session, request), Receipt[int])
    assert_type(await sqlalchemy.send(async_session, request), Receipt[int])
    assert_type(sqlalchemy.send_many(session.connection(), [request]), list[Sent[int]])
    assert_type(django.send(request, using="other"), Receipt[int])


async def options() -> None:
    account = Account.at("acct-1")
    withdraw = account.withdraw.options(timeout=2, primary_key="w-1", headers={"tenant": "a"})
    assert_type(await withdraw(10, note="rent"), int)
    assert_type(await withdraw.options(timeout=1).send(10), Receipt[int])
    assert_type(withdraw.delay(10), Receipt[int])
    assert_type(withdraw.call(10), int)
    later = withdraw.options(delay=timedelta(minutes=1), expires=90)
    assert_type(await later.send(10), Receipt[int])
    assert_type(await add.options(eta=datetime.now(UTC)).send(2, 3), Receipt[int])


async def broadcasts() -> None:
    assert_type(await Account.read.broadcast(), Broadcast)
    assert_type(Account.read.broadcast_blocking(), Broadcast)
    assert_type(await Account.read.options(timeout=1).broadcast(), Broadcast)


class Printer(Entity):
    @message(primary_key="key")
    async def lines(self, n: int, key: str) -> AsyncIterator[str]:
        yield key * n

    @message
    async def numbers(self) -> AsyncGenerator[int, None]:
        yield 1


async def streams() -> None:
    printer = Printer.at("a")
    async for line in printer.lines.stream(1, "k"):
        assert_type(line, str)
    receipt = await printer.lines.options(timeout=1).send(1, key="k")
    assert_type(receipt, StreamReceipt[str])
    assert_type(await receipt, int)
    async for number in (await printer.numbers.send()).stream(after=1):
        assert_type(number, int)


async def tasks() -> None:
    assert_type(add(2, 3), int)
    assert_type(add.delay(2, 3), Receipt[int])
    assert_type(add.delay(2).get(), int)
    assert_type(add.call(2, y=3), int)
    assert_type(await add.ask(2, 3), int)
    assert_type(await add.send(2, 3), Receipt[int])
    assert_type(await add.options(primary_key="a-1").ask(2, 3), int)
    assert_type(await wait(timedelta(seconds=1)), float)
    assert_type(await wait.ask(timedelta(seconds=1)), float)
    assert_type(wait.delay(timedelta(seconds=1)).get(), float)


def failures() -> None:
    failure = InsufficientFunds(balance=3)
    assert_type(failure.balance, int)
    assert_type(failure.currency, str)


class Chain(Entity):
    @message
    async def shorten(self) -> int:
        return 1

    def again(self) -> Self:
        return type(self).at(self.id)
