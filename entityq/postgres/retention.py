"""What is kept for how long, and the removal of what is not."""

from collections.abc import Mapping
from dataclasses import dataclass

from entityq.definition import EntityDefinition
from entityq.postgres.connect import Connection, Pool, pooled
from entityq.postgres.facts import Group
from entityq.postgres.queries import load

_SQL = load("retention.sql")
_DECLARE, _READ_TERMS, _PURGE = _SQL["declare"], _SQL["read_terms"], _SQL["purge"]


@dataclass(frozen=True, slots=True)
class Terms:
    """`now` is the database's clock, Unix seconds; `kept` how long things are kept, in seconds, ascending."""

    now: float
    kept: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Purged:
    """One page of the outbox: its last request id, and how many rows were looked at, removed and emptied."""

    last: int
    looked: int
    removed: int
    emptied: int


async def declare(
    connection: Connection,
    namespace: str,
    definitions: Mapping[str, EntityDefinition],
    *,
    keep: float,
    keep_keys: float,
) -> None:
    """Says for the whole cluster how long requests of these types are kept; `keep` and `keep_keys`, in seconds,
    are of messages that do not say."""
    rows = [
        (definition.type, message.name, *message.retention.filled(keep, keep_keys))
        for definition in definitions.values()
        for message in definition.messages.values()
        if message.persisted
    ]
    types, messages, keeps, keeps_of_keys = zip(*rows, strict=True) if rows else ((), (), (), ())
    values = {
        "namespace": namespace,
        "types": list(types),
        "messages": list(messages),
        "keeps": list(keeps),
        "keeps_of_keys": list(keeps_of_keys),
    }
    await connection.execute(_DECLARE, values, prepare=False)


class Retention:
    """Of one runner, on its pool. `keep` and `keep_keys`, in seconds: of messages that nobody has declared."""

    def __init__(self, pool: Pool, namespace: str, *, keep: float, keep_keys: float) -> None:
        self._pool = pool
        self._namespace = namespace
        self._keep = keep
        self._keep_keys = max(keep, keep_keys)

    async def terms(self, group: Group) -> Terms:
        """Raises psycopg.Error."""
        values = {"namespace": self._namespace, "group_id": group.group_id}
        async with pooled(self._pool) as connection:
            ((now, declared),) = await (await connection.execute(_READ_TERMS, values)).fetchall()
        return Terms(now, tuple(sorted({*declared, self._keep, self._keep_keys})))

    async def purge(self, group: Group, after: int, until: int, page: int) -> Purged:
        """Removes what its time has come for among the next `page` requests with `after < id <= until`.

        Raises psycopg.Error; nothing is removed then.
        """
        values = {
            "namespace": self._namespace,
            "first_shard": group.first_shard,
            "shards": group.shards,
            "keep": self._keep,
            "keep_keys": self._keep_keys,
            "after": after,
            "until": until,
            "page": page,
        }
        async with pooled(self._pool) as connection:
            (row,) = await (await connection.execute(_PURGE, values)).fetchall()
        return Purged(*row)
