"""Schedules and a singleton. Run it with `entityq dev -A examples.scheduled:app`."""

import asyncio
from datetime import datetime

from entityq import Entity, EntityQ, SingletonContext, message

app = EntityQ("scheduled")


@app.cron("*/5 * * * * *", instant="until", catch_up="skip", overlap="skip")
@app.task
async def report(until: datetime) -> str:
    return f"all quiet until {until:%H:%M:%S}"


@app.entity
class Ledger(Entity):
    days: list[str] = []

    @message(primary_key="day")
    def close(self, day: str) -> int:
        self.days.append(day)
        return len(self.days)


app.cron("0 3 * * *", timezone="Europe/Berlin", instant="day", catch_up="all")(Ledger.at("main").close)


@app.singleton
async def feed(context: SingletonContext) -> None:
    """One connection to the outside, held by one runner."""
    print(f"connected, fencing token {context.fencing_token}", flush=True)
    try:
        await asyncio.Event().wait()  # read and pass on, until it is cancelled
    finally:
        print("disconnected", flush=True)
