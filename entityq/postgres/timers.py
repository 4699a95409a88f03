"""Requests whose time has not come: what their shards' owner asks."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from entityq.postgres.backlog import Row, row_of
from entityq.postgres.queries import load

_FIRE = load("timers.sql")["fire_timers"]

# Rows, and bytes of envelopes, that one statement fires: commits wait behind it.
PAGE = 500
MOST_BYTES = 2 * 1024 * 1024


class Statements(Protocol):
    """A session, one statement at a time."""

    def execute(
        self, query: bytes, parameters: Mapping[str, object]
    ) -> Awaitable[Sequence[tuple[Any, ...]]]: ...


@dataclass(frozen=True, slots=True)
class Fired:
    """What became pending, by shard id and in order. `now` and `next` are seconds since 1970 by the database's
    clock: when the statement began, and when the next timer of these shards is due (None: there is none); `more`:
    some are due already."""

    rows: Mapping[int, Sequence[Row]]
    now: float
    next: float | None
    more: bool


async def fire_timers(session: Statements, shard_ids: Sequence[int], most: int = PAGE) -> Fired:
    """At most so many requests. `session` is the one that holds the shards' locks. Raises what it does."""
    page = min(most, PAGE)
    values = {
        "shard_ids": list(shard_ids),
        # So that one statement does not read a page of each of many shards; what is left out comes next.
        "each": max(1, min(page, 4 * page // max(1, len(shard_ids)))),
        "page": page,
        "most_bytes": MOST_BYTES,
    }
    *found, summary = await session.execute(_FIRE, values)
    rows: dict[int, list[Row]] = {}
    for shard_id, *row in sorted((row[:11] for row in found), key=lambda row: row[1]):
        rows.setdefault(shard_id, []).append(row_of(tuple(row)))
    return Fired(rows, *summary[11:])
