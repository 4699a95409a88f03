"""Limits of rate and of turns at once. Run its worker with `entityq dev -A examples.limited:app`."""

from entityq import Entity, EntityQ, MaxRunning, RateLimit, message

app = EntityQ("limited")


@app.task(rate_limit="100/m")  # on each runner, as in Celery
def send_mail(to: str) -> str:
    return f"sent to {to}"


@app.task(max_running=MaxRunning(2, scope="cluster"))  # a service that takes two calls at once
def render(page: int) -> int:
    return page * 10


@app.entity(max_running=50)  # of all of its messages, on each runner
class Customer(Entity):
    calls: int = 0

    @message(rate_limit=RateLimit(5, per=1.0, scope="entity"))  # each customer for himself
    async def call(self) -> int:
        self.calls += 1
        return self.calls

    @message(rate_limit=RateLimit(1_000, per=60.0, burst=10, scope="cluster"))  # all customers on all runners
    async def charge(self, amount: int) -> int:
        return amount
