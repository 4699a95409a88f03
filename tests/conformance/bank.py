"""The entities of the conformance suite. They belong to no app: each test makes entity types of them."""

import asyncio
import threading
from contextvars import ContextVar
from typing import ClassVar

from entityq import EntityQError, Failure, message
from entityq.task import Task
from tests.support.stage import Actor

ambient: ContextVar[str] = ContextVar("ambient", default="nothing")


class InsufficientFunds(Failure):
    balance: int


def add(x: int, y: int) -> int:
    return x + y


class Ledger(Actor):
    accounts: ClassVar[type["Account"]]

    lines: list[str] = []

    @message
    async def record(self, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @message(primary_key="key")
    async def record_once(self, line: str, key: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @message
    async def read(self) -> list[str]:
        return self.lines

    @message
    async def ask_back(self, account_id: str) -> int:
        return await self.accounts.at(account_id).deposit(1, reference="back")


class Account(Actor):
    ledgers: ClassVar[type[Ledger]]
    add_task: ClassVar[Task[[int, int], int, int]]

    balance: int = 0
    history: list[int] = []

    async def on_activate(self) -> None:
        self._turns = 0
        self._stage.tell(f"activate {self.id}")
        await self.ledgers.at(f"{self.id} activations").record.send("activated")

    @message(primary_key="reference")
    async def deposit(self, amount: int, reference: str, gate: str = "") -> int:
        await self._stage.enter(f"deposit {self.id} {reference}", gate)
        self.balance += amount
        self.history.append(amount)
        return self.balance

    @message(primary_key="reference")
    def withdraw(self, amount: int, reference: str) -> int:
        self._stage.enter_from_thread(f"withdraw {self.id} {reference}")
        self.history.append(-amount)
        self.balance -= amount
        if self.balance < 0:
            raise InsufficientFunds(balance=self.balance + amount)
        return self.balance

    @message
    async def read(self) -> tuple[int, list[int]]:
        return self.balance, self.history

    @message(persisted=False, concurrent=True)
    async def peek(self) -> int:
        return self.balance

    @message(persisted=False, concurrent=True)
    async def change_a_copy(self) -> int:
        self.history.append(1)
        return len(self.history)

    @message(persisted=False)
    async def change_what_is_not_mine(self) -> None:
        self.balance = 1_000_000

    @message(persisted=False)
    async def hold(self, text: str, gate: str = "") -> str:
        await self._stage.enter(f"hold {self.id} {text}", gate)
        return text

    @message
    async def explode(self) -> int:
        self.balance += 1_000
        self.history.append(1_000)
        return 1 // 0

    @message
    async def answer_nonsense(self) -> int:
        self.balance += 1_000
        return "not a number"  # type: ignore[return-value]  # what is tested

    @message
    async def count_turns(self) -> int:
        self._turns += 1
        return self._turns

    @message
    async def describe_turn(self) -> tuple[int, str | None, dict[str, str]]:
        return self.context.request_id, self.context.primary_key, dict(self.context.headers)

    @message
    def thread(self) -> str:
        return threading.current_thread().name

    @message
    async def ambient(self) -> str:
        return ambient.get()

    # ----- what turns send

    @message
    async def tell_ledger(self, line: str, *, fail: bool = False) -> int:
        receipt = await self.ledgers.at(self.id).record.send(line)
        await self._stage.enter(f"told {self.id}", "told")
        if fail:
            raise InsufficientFunds(balance=self.balance)
        return receipt.request_id

    @message
    async def tell_ledger_once(self, line: str, key: str) -> bool:
        self.balance += 1
        return (await self.ledgers.at(self.id).record_once.send(line, key)).duplicate

    @message
    async def wait_for_what_it_sends(self) -> str:
        receipt = await self.ledgers.at(self.id).record.send("line")
        try:
            await receipt
        except EntityQError as error:
            return error.what
        return "answered"

    @message
    async def ask_ledger(self, line: str) -> int:
        return await self.ledgers.at(self.id).record(line)

    @message
    async def ask_in_a_circle(self) -> str:
        try:
            await self.ledgers.at(self.id).ask_back(self.id)
        except EntityQError as error:
            return f"{type(error).__name__}: {error.what}"
        return "answered"

    @message
    def ask_from_a_thread(self, line: str) -> tuple[int, int]:
        self.ledgers.at(self.id).record.delay(line)
        return self.ledgers.at(f"{self.id} asked").record.call(line), self.add_task.call(1, 2)

    @message
    async def gather(self, lines: list[str]) -> list[int]:
        return await asyncio.gather(*(self.ledgers.at(line).record(line) for line in lines))
