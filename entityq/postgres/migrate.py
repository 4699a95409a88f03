"""Numbered, forward-only migrations, each in one transaction under an advisory lock.

Expand, then contract: old and new code run side by side during a rollout. A migration therefore says with
`-- oldest code: N` which code can still run on its result: the one whose newest migration is N. Without that
line only code that has the migration itself can.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

from psycopg.errors import InsufficientPrivilege, LockNotAvailable
from psycopg.sql import SQL, Identifier, Literal

from entityq.address import lock_class
from entityq.errors import PersistenceError, UnsafeConfiguration
from entityq.postgres.connect import Connection, fetch_value
from entityq.postgres.facts import ensure_cluster
from entityq.postgres.queries import load

_SQL = load("migrate.sql")
_SET_WAIT, _LOCK = _SQL["set_wait"], _SQL["lock"]
_FIND_SCHEMA, _FIND_TABLE = _SQL["find_schema"], _SQL["find_table"]
_CREATE_TABLE, _APPLIED, _RECORD = _SQL["create_table"], _SQL["applied"], _SQL["record"]

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_OLDEST_CODE = re.compile(rb"^-- oldest code: (\d+)$", re.MULTILINE)

# The oldest schema that this code can run on, as the number of its newest migration.
OLDEST_SCHEMA = 7

TABLE_WAIT = "5s"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of the directory `migrations`."""

    number: int
    name: str
    sql: bytes

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql).hexdigest()

    @property
    def oldest_code(self) -> int:
        found = _OLDEST_CODE.search(self.sql)
        return int(found[1]) if found else self.number

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


@dataclass(frozen=True, slots=True)
class Applied:
    """A row of the table `migration`."""

    number: int
    name: str
    checksum: str
    oldest_code: int
    applied_at: datetime


def _packaged() -> tuple[Migration, ...]:
    directory = resources.files("entityq.postgres").joinpath("migrations")
    found = (
        Migration(int(match[1]), match[2], file.read_bytes())
        for file in directory.iterdir()
        if (match := _FILE.fullmatch(file.name))
    )
    return tuple(sorted(found, key=lambda migration: migration.number))


MIGRATIONS = _packaged()


async def migrate(
    connection: Connection,
    *,
    schema: str,
    namespace: str,
    shards: int,
    migrations: Sequence[Migration] = MIGRATIONS,
    wait: float = 600.0,
) -> list[Migration]:
    """Apply what is missing, make sure of the namespace's cluster row, and return what was applied now.

    `wait` is how long to stand behind another migration, in seconds. Raises UnsafeConfiguration where rights
    are missing or an applied migration was changed, PersistenceError when the wait ends.
    """
    try:
        done = [migration for migration in migrations if await _apply(connection, schema, migration, wait)]
        await ensure_cluster(connection, namespace, shards)
    except InsufficientPrivilege as error:
        raise UnsafeConfiguration(
            f"Schema {schema} cannot be migrated by this role: {error.diag.message_primary}.",
            advice="Grant CREATE on the database, or let its owner run what `entityq migrate --print` shows.",
        ) from error
    except LockNotAvailable as error:
        raise PersistenceError(
            f"Schema {schema} is locked: by another migration for {wait:g} s, "
            f"or by a session that uses one of its tables for {TABLE_WAIT}.",
            advice="Nothing of this migration was applied: run it again.",
        ) from error
    return done


async def _apply(connection: Connection, schema: str, migration: Migration, wait: float) -> bool:
    async with connection.transaction():
        await connection.execute(_SET_WAIT, {"wait": f"{max(1, int(wait * 1000))}ms"})
        await connection.execute(_LOCK, {"lock_class": _lock_class(schema)})
        # A statement that waits for a table's lock makes everybody else wait behind it.
        await connection.execute(_SET_WAIT, {"wait": TABLE_WAIT})
        await _ensure_table(connection, schema)
        for applied in await applied_migrations(connection):
            if applied.number == migration.number:
                _refuse_changed(applied, migration)
                return False
        # Without parameters: several statements at once, and % stands for itself.
        await connection.execute(migration.sql, prepare=False)
        await connection.execute(_RECORD, _row(migration))
        return True


async def _ensure_table(connection: Connection, schema: str) -> None:
    # Looked up first: IF NOT EXISTS asks for the right to create also where there is nothing to create.
    if not await fetch_value(connection, _FIND_SCHEMA, {"schema": schema}):
        await connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
    if not await fetch_value(connection, _FIND_TABLE):
        await connection.execute(_CREATE_TABLE)


def _refuse_changed(applied: Applied, migration: Migration) -> None:
    if applied.checksum != migration.checksum:
        raise UnsafeConfiguration(
            f"Migration {migration} was applied on {applied.applied_at:%Y-%m-%d} with other contents.",
            advice="An applied migration is never edited: restore its file, or use a new schema.",
        )


async def applied_migrations(connection: Connection) -> list[Applied]:
    """What the database has, oldest first."""
    rows = await (await connection.execute(_APPLIED)).fetchall()
    return [Applied(*row) for row in rows]


async def require_schema(connection: Connection, schema: str) -> None:
    """Raises UnsafeConfiguration unless this code can run on the database's schema."""
    if not await fetch_value(connection, _FIND_TABLE):
        raise UnsafeConfiguration(
            f"Schema {schema} of this database has no entityq tables, or this role may not use it.",
            advice="Run `entityq migrate`.",
        )
    refuse_range(schema, await applied_migrations(connection), newest_code=MIGRATIONS[-1].number)


def refuse_range(schema: str, applied: Sequence[Applied], *, newest_code: int) -> None:
    """The decision of `require_schema`, on what the database has and the newest migration of this code."""
    newest = max((row.number for row in applied), default=0)
    if newest < OLDEST_SCHEMA:
        raise UnsafeConfiguration(
            f"Schema {schema} is at migration {newest}; this code needs {OLDEST_SCHEMA} or later.",
            advice="Run `entityq migrate`.",
        )
    needed = max(row.oldest_code for row in applied)
    if needed > newest_code:
        raise UnsafeConfiguration(
            f"Schema {schema} is at migration {newest} and needs code of migration {needed} or later; "
            f"this code is of migration {newest_code}.",
            advice="Install a newer entityq.",
        )


def print_sql(schema: str, migrations: Sequence[Migration] = MIGRATIONS) -> str:
    """The migrations as a script for psql, for databases whose owner runs such things by hand.

    The namespace's cluster row is not in it: `entityq migrate` adds it with the rights of an ordinary role.
    """
    name = Identifier(schema).as_string(None)
    parts = ["BEGIN", _LOCK.decode() % {"lock_class": _lock_class(schema)}]
    if migrations[0].number == 1:
        parts.append(f"CREATE SCHEMA IF NOT EXISTS {name}")
    parts.append(f"SET LOCAL search_path TO {name}, pg_temp")
    if migrations[0].number == 1:
        parts.append(_CREATE_TABLE.decode())
    for migration in migrations:
        values = {name: Literal(value).as_string(None) for name, value in _row(migration).items()}
        parts += [migration.sql.decode().strip().removesuffix(";"), _RECORD.decode() % values]
    return ";\n\n".join([*parts, "COMMIT"]) + ";\n"


def _row(migration: Migration) -> dict[str, str | int]:
    return {
        "number": migration.number,
        "name": migration.name,
        "checksum": migration.checksum,
        "oldest_code": migration.oldest_code,
    }


def _lock_class(schema: str) -> int:
    return lock_class(schema, "", "migrate", "")
