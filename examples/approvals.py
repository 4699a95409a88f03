"""Withdrawals above a limit wait for a person. Run its worker with `entityq dev -A examples.approvals:app`."""

from dataclasses import dataclass

from entityq import Entity, EntityQ, Failure, message

app = EntityQ("approvals")

LIMIT = 1_000
THREE_DAYS = 3 * 86_400.0


@dataclass
class Decision:
    approved: bool
    by: str


class Refused(Failure):
    by: str


@app.entity
class Desk(Entity):
    """What is to be decided: the token of each withdrawal, by its reference."""

    waiting: dict[str, str] = {}

    @message
    async def put(self, reference: str, token: str) -> None:
        self.waiting[reference] = token

    @message(persisted=False, concurrent=True)
    async def read(self) -> dict[str, str]:
        return self.waiting


@app.entity(head_of_line="park")  # the account goes on meanwhile
class Account(Entity):
    balance: int = 10_000

    @message(primary_key="reference")
    async def withdraw(self, amount: int, reference: str) -> int:
        if amount > LIMIT:
            token = self.context.signal_token("approval")
            await Desk.at("desk").put(reference, token)  # an ask: once, however often this runs
            decision = await self.context.wait_for("approval", Decision, timeout=THREE_DAYS)
            if not decision.approved:
                raise Refused(by=decision.by)
        self.balance -= amount
        return self.balance
