"""Who is alive: the runners whose lease session holds the lock on their number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entityq.address import lock_class
from entityq.postgres.connect import Connection
from entityq.postgres.queries import load

LIVE_RUNNERS = load("membership.sql")["live_runners"]


@dataclass(frozen=True, slots=True)
class Member:
    """A live runner. One that is draining is given no shards, and still holds some.

    `healthy`: what its peers found out; alive it is in either case. `place`: see Claim.
    """

    incarnation: int
    number: int
    name: str
    pid: int
    groups: frozenset[str]
    types: frozenset[str]
    weight: float
    draining: bool
    groups_of_types: tuple[str, ...]
    host: str = ""
    healthy: bool = True
    place: str = ""

    def known_types(self, group: str) -> int:
        """How many of a group's registered types this runner knows."""
        return self.groups_of_types.count(group)


def runner_class(schema: str, namespace: str) -> int:
    """The lock class of runner numbers, signed, as the lock functions take it."""
    return lock_class(schema, namespace, "runner", "")


def unsigned(class_: int) -> int:
    """A lock class as pg_locks shows it."""
    return class_ & 0xFFFF_FFFF


def live_runners_parameters(schema: str, namespace: str) -> dict[str, object]:
    return {"unsigned_class": unsigned(runner_class(schema, namespace)), "namespace": namespace}


def members_of(rows: Sequence[tuple[Any, ...]]) -> tuple[Member, ...]:
    """The rows of `live_runners`, in the order of their incarnations."""
    return tuple(
        Member(
            incarnation=incarnation,
            number=number,
            name=name,
            pid=pid,
            groups=frozenset(groups),
            types=frozenset(types),
            weight=weight,
            draining=draining,
            groups_of_types=tuple(sorted(groups_of_types)),
            host=host,
            healthy=healthy,
            place=place,
        )
        for (
            incarnation,
            number,
            name,
            pid,
            groups,
            types,
            weight,
            draining,
            groups_of_types,
            host,
            healthy,
            place,
        ) in rows
    )


async def live_runners(connection: Connection, schema: str, namespace: str) -> tuple[Member, ...]:
    """The cluster's live runners. `schema` is part of the lock key; the tables come from the search path.

    Raises psycopg.Error where the connection fails.
    """
    cursor = await connection.execute(LIVE_RUNNERS, live_runners_parameters(schema, namespace))
    return members_of(await cursor.fetchall())
