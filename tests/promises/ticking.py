"""The app of schedules and singletons in processes that are killed."""

import asyncio
import os

from entityq import Entity, EntityQ, SingletonContext, message
from entityq.postgres.connect import connect

app = EntityQ("promises")

# An advisory lock that the singleton takes: two at once would not both get it.
LEADER = 4711


@app.entity
class Clock(Entity):
    instants: list[str] = []

    @message(primary_key="instant")
    async def tick(self, instant: str) -> None:
        self.instants.append(instant)

    @message(persisted=False)
    async def read(self) -> list[str]:
        return self.instants


app.cron("* * * * * *", name="tick", instant="instant", catch_up="all")(Clock.at("main").tick)


@app.singleton
async def leader(context: SingletonContext) -> None:
    """Writes down its token and its process, and whether it was alone."""
    async with await connect(os.environ["ENTITYQ_POSTGRES_URL"], schema="entityq") as connection:
        cursor = await connection.execute(b"SELECT pg_try_advisory_lock(%s)", [LEADER])
        ((alone,),) = await cursor.fetchall()
        epoch, start = context.fencing_token
        values = [epoch, start, os.getpid(), alone]
        await connection.execute(
            b"INSERT INTO led (epoch, start, pid, alone) VALUES (%s, %s, %s, %s)", values
        )
        await asyncio.Event().wait()
