"""Statements look rows up by their keys, whatever the statistics say (decision 2)."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, cast

import pytest

from entityq.postgres.connect import Connection, connect
from entityq.postgres.queries import load

FILES = (
    "turns.sql",
    "outbox.sql",
    "timers.sql",
    "attempts.sql",
    "cancellation.sql",
    "retention.sql",
    "signals.sql",
    "chunks.sql",
)
# One row a request, an entity or a timer: what a scan of all of it would cost grows for ever.
LARGE = frozenset({"outbox", "pending", "entity", "timer", "dead_letter", "signal", "chunk"})
# Bounded by what the caller wants counted; and what has no plan.
NOT_PLANNED = frozenset({"count_pending", "estimate_pending", "begin", "commit", "rollback", "hold_reshard"})

STATEMENTS = [
    pytest.param(query, id=f"{file.removesuffix('.sql')}.{name}")
    for file in FILES
    for name, query in load(file).items()
    if name not in NOT_PLANNED
]
FILL = (
    (
        b"INSERT INTO outbox (request_id, shard_id, seq, entity_hash, type, entity_id, message, payload_hash, envelope)"
        b" SELECT n, n, n, n, 'T', 'e' || n, 'm', '', '' FROM generate_series(1, %(rows)b::integer) AS n"
    ),
    (
        b"INSERT INTO pending (shard_id, seq, request_id, entity_hash)"
        b" SELECT n, n, n, n FROM generate_series(1, %(rows)b::integer) AS n"
    ),
    (
        b"INSERT INTO entity (shard_id, type, entity_id, version, epoch, outcome)"
        b" SELECT n, 'T', 'e' || n, 1, 1, 0 FROM generate_series(1, %(rows)b::integer) AS n"
    ),
    (
        b"INSERT INTO timer (shard_id, due_at, request_id, entity_hash)"
        b" SELECT n, now(), n, n FROM generate_series(1, %(rows)b::integer) AS n"
    ),
    b"INSERT INTO signal (request_id, name) SELECT n, 'x' FROM generate_series(1, %(rows)b::integer) AS n",
    b"INSERT INTO chunk (request_id, number, value) SELECT n, 1, '' FROM generate_series(1, %(rows)b::integer) AS n",
)


@pytest.fixture(params=[0, 1, 40], ids="{} rows".format)
async def analyzed(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[Connection]:
    """What the planner believes of a table that was small at the last look, and need not be now."""
    async with await connect(postgres_url, schema="entityq") as connection:
        for statement in FILL:
            await connection.execute(statement, {"rows": request.param})
        await connection.execute(b"ANALYZE")
        yield connection


@pytest.mark.parametrize("query", STATEMENTS)
async def test_no_table_is_scanned_as_a_whole(analyzed: Connection, query: bytes) -> None:
    scans = [
        f"{node['Node Type']} on {node.get('Relation Name') or node.get('Index Name')}"
        for node in nodes(await generic_plan(analyzed, query))
        if is_whole_scan(node)
    ]
    assert scans == []


async def generic_plan(connection: Connection, query: bytes) -> dict[str, Any]:
    names: dict[bytes, int] = {}
    numbered = re.sub(
        rb"%\((\w+)\)[bst]", lambda match: b"$%d" % names.setdefault(match[1], len(names) + 1), query
    ).replace(b"%%", b"%")
    await connection.execute(b"PREPARE planned AS " + numbered)
    nulls = b"(" + b", ".join([b"NULL"] * len(names)) + b")" if names else b""
    cursor = await connection.execute(b"EXPLAIN (FORMAT JSON) EXECUTE planned" + nulls)
    row = await cursor.fetchone()
    assert row is not None
    found = cast("list[dict[str, Any]]", row[0])
    return cast("dict[str, Any]", found[0]["Plan"])


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def is_whole_scan(node: Mapping[str, Any]) -> bool:
    table = node.get("Relation Name") or str(node.get("Index Name", "")).split("_")[0]
    if table not in LARGE:
        return False
    kind = node["Node Type"]
    return kind == "Seq Scan" or (
        kind in {"Index Scan", "Index Only Scan", "Bitmap Index Scan"} and "Index Cond" not in node
    )
