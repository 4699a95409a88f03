"""An app with handlers that block the event loop or kill their process, and a runner: python -m ... NAME SECONDS."""

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

from entityq import Entity, EntityQ, message
from entityq.runner.opening import open_runner

app = EntityQ("shop")


@app.entity
class Shop(Entity):
    visits: int = 0

    @message
    async def visit(self) -> int:
        self.visits += 1
        return self.visits

    @message
    async def block(self, until: str) -> int:
        self.visits += 1
        wait_for_file(until)
        return self.visits

    @message
    async def die(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    @message(persisted=False)
    async def look(self, until: str) -> int:
        wait_for_file(until)
        return self.visits


def wait_for_file(path: str) -> None:
    while not Path(path).is_file():
        time.sleep(0.02)


async def run(name: str, loop_limit: float) -> None:
    """Not through a worker, so that nobody starts it again, and with another limit than the usual one."""
    settings = app.settings
    servers = settings.servers()
    assert servers is not None
    async with (
        app.open_client() as client,
        open_runner(
            settings, servers, app.definitions, client, app.serializer, name=name, loop_limit=loop_limit
        ) as runner,
    ):
        await runner.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(run(sys.argv[1], float(sys.argv[2])))
