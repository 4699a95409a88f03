"""A bank. Run its worker with `entityq dev -A examples.bank:app`."""

from entityq import Entity, EntityQ, Failure, message

app = EntityQ("bank")


class InsufficientFunds(Failure):
    balance: int


@app.entity
class Account(Entity):
    balance: int = 0  # annotated fields are the durable state

    @message(primary_key="reference")
    async def deposit(self, amount: int, reference: str) -> int:
        self.balance += amount
        return self.balance

    @message(primary_key="reference")
    def withdraw(self, amount: int, reference: str) -> int:  # sync handlers run in a thread
        if amount > self.balance:
            raise InsufficientFunds(balance=self.balance)  # nothing changed; the caller gets it typed
        self.balance -= amount
        return self.balance

    @message(persisted=False, concurrent=True)
    async def read(self) -> int:
        return self.balance


@app.task  # a plain Celery-style task: no state, any runner can run it
def add(x: int, y: int) -> int:
    return x + y
