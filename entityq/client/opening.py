"""How a client is opened: tried again, as a send is, while Postgres is away."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count

from entityq.client.client import Client
from entityq.errors import PersistenceError
from entityq.retry import TRANSIENT, next_delay

POLICY = TRANSIENT

_log = logging.getLogger(__name__)


class Opening:
    """`began`: the time of the loop from which the tries are counted. `trouble`: why there is no client yet."""

    def __init__(self, open_client: Callable[[], Awaitable[Client]], began: float) -> None:
        self.trouble = ""
        self._open = open_client
        self._began = began
        self._given_up = asyncio.Event()

    @property
    def given_up(self) -> bool:
        return self._given_up.is_set()

    def give_up(self) -> None:
        """After the try that is under way there is no other one."""
        self._given_up.set()

    async def run(self) -> Client:
        """Raises UnsafeConfiguration at once, and PersistenceError when the tries are used up."""
        clock = asyncio.get_running_loop().time
        for attempt in count(1):
            try:
                return await self._open()
            except PersistenceError as error:
                self.trouble = error.what
                pause = next_delay(POLICY, attempt, clock() - self._began, random.random)
                if pause is None or self.given_up:
                    raise
                _log.warning("client.opening_failed, tried again in %.2f s: %s", pause, error.what)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._given_up.wait()
        raise AssertionError("count() does not end")
