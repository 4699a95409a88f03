"""Statements that do no harm when they run twice, tried again under a policy."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from psycopg import Error

from entityq.errors import PersistenceError
from entityq.postgres.connect import Connection
from entityq.postgres.session import ConnectionLost, Session
from entityq.retry import RetryPolicy, next_delay

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GivenUp:
    """`unknown`: a try may have succeeded without an answer."""

    error: Exception
    unknown: bool


async def repeat(
    session: Session, work: Callable[[Connection, bool], Awaitable[T]], policy: RetryPolicy
) -> T | GivenUp:
    """`work` is told whether an earlier try of it may have succeeded. Raises what else it raises."""
    clock = asyncio.get_running_loop().time
    began, attempt, unknown = clock(), 0, False
    while True:
        attempt += 1

        def tried(connection: Connection, again: bool = unknown) -> Awaitable[T]:
            return work(connection, again)

        try:
            return await session.run(tried)
        except (ConnectionLost, PersistenceError, Error) as error:
            unknown = unknown or isinstance(error, ConnectionLost)
            pause = next_delay(policy, attempt, clock() - began, random.random)
            if pause is None:
                return GivenUp(error, unknown)
        await asyncio.sleep(pause)
