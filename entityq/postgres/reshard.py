"""Changing a group's number of shards, or a type's group, with every request, reply, key and state kept.

    close    the group takes no requests and gives out no leases; transactions that began before it end
    own      every lock of its shards is taken, so that no runner is left that could commit
    move     its rows get their new shards, batch by batch
    open     the facts change, in one transaction

How far it is, is in the database. What stands in the way while closing or owning undoes it; once it moves, or
where its process was killed, only running it again ends it, and until then the group stays closed. New shards
have new ids, above all that there ever were: a process with old facts finds no row for what it knows.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from psycopg import Error

from entityq.address import Shard, lock_class
from entityq.errors import EntityQError
from entityq.postgres.connect import Connection, fetch_value
from entityq.postgres.facts import Facts, facts_channel, load_facts, notify_changed
from entityq.postgres.membership import unsigned
from entityq.postgres.overview import Change, Reshard, read_reshard
from entityq.postgres.queries import load
from entityq.postgres.shard_moves import Move, RowMover, read_moves

_SQL = load("reshard.sql")
_FACTS = load("facts.sql")

# Seconds between two looks at what must end first, and between two words about it.
POLL = 0.1
REMINDER = 5.0

BATCH = 2_000
WAIT = 60.0

Say = Callable[[str], None]
Forget = Callable[[Sequence[Shard]], Awaitable[None]]


class Resharding:
    """One run. `connection` is a lease connection of its own: its session's locks are the protection."""

    def __init__(
        self,
        connection: Connection,
        *,
        schema: str,
        namespace: str,
        say: Say,
        forget_streams: Forget,
        wait: float = WAIT,
        batch: int = BATCH,
    ) -> None:
        """`say` takes a sentence about how far it is; `forget_streams` deletes the streams of shards.

        `wait`: seconds for runners and transactions to end. `batch`: rows moved in one transaction.
        """
        self._connection = connection
        self._schema = schema
        self._namespace = namespace
        self._where: dict[str, object] = {"namespace": namespace}
        self._say = say
        self._forget_streams = forget_streams
        self._wait = wait
        self._batch = batch
        self._taken: set[tuple[int, int]] = set()

    async def run(self, change: Change) -> bool:
        """False when there is nothing to do. Raises EntityQError for what is refused, and psycopg.Error."""
        deadline = time.monotonic() + self._wait
        await self._connection.execute(_SQL["be_patient"])
        await self._be_alone(deadline)
        unfinished = await read_reshard(self._connection, self._namespace)
        if unfinished is None:
            if not await self._close(change):
                return False
        else:
            refuse_other(unfinished, change)
            self._say(f"Going on with the reshard of {change}.")
        if unfinished is None or unfinished.phase == "closing":
            await self._undone_if_it_fails(self._clear(deadline))
        else:
            await self._own_shards(deadline, await self._moves())
        await self._move(change)
        return True

    # ----- close

    async def _be_alone(self, deadline: float) -> None:
        class_ = lock_class(self._schema, self._namespace, "reshard", "")
        reminder = time.monotonic() + REMINDER
        while not await fetch_value(self._connection, _SQL["own_reshard"], {"class": class_}):
            if time.monotonic() > deadline:
                raise EntityQError(
                    f"Another `entityq reshard` of the namespace {self._namespace} is running.",
                    advice="Wait for its end: `entityq reshard --status` tells how far it is.",
                )
            if time.monotonic() > reminder:
                self._say("Waiting for the end of another reshard.")
                reminder += REMINDER
            await asyncio.sleep(POLL)

    async def _close(self, change: Change) -> bool:
        """False when everything is as it should be already."""
        async with self._connection.transaction():
            await self._connection.execute(_FACTS["wait_longer"])
            await self._connection.execute(_FACTS["lock_groups"])
            facts = await load_facts(self._connection, self._namespace)
            if not changes_something(facts, change):
                return False
            if change.group not in facts.groups:
                values = {**self._where, "name": change.group}
                await self._connection.execute(_SQL["insert_group"], values)
                await self._connection.execute(_SQL["insert_shards"], values)
                facts = await load_facts(self._connection, self._namespace)
            counts = new_counts(facts, change)
            what: dict[str, object] = {"group": change.group, "shards": change.shards, "type": change.type}
            await self._connection.execute(_SQL["insert_reshard"], {**self._where, **what})
            groups: dict[str, object] = {"names": list(counts), "counts": list(counts.values())}
            await self._connection.execute(_SQL["plan_groups"], {**self._where, **groups})
            await self._connection.execute(_SQL["close_groups"], self._where)
            await notify_changed(self._connection, self._namespace)
        self._say(f"Closed {_groups(counts)}: requests are not accepted until this is finished.")
        return True

    async def _undone_if_it_fails(self, work: Awaitable[None]) -> None:
        try:
            await work
        except BaseException:
            # Nothing is moved yet, and nobody should have to wait for what did not come about.
            try:
                values = {**self._where, "channel": facts_channel(self._namespace)}
                if await fetch_value(self._connection, _SQL["undo"], values):
                    self._say("Opened again: nothing was changed.")
            except Error as error:
                self._say(f"It could not be opened again ({error}): run the same command again.")
            raise

    # ----- own

    async def _clear(self, deadline: float) -> None:
        await self._outlive_inserts(deadline)
        await self._own_shards(deadline, await self._moves())
        await self._connection.execute(_SQL["begin_moving"], self._where)

    async def _moves(self) -> list[Move]:
        return await read_moves(self._connection, self._namespace)

    async def _outlive_inserts(self, deadline: float) -> None:
        """Waits for the transactions that may not have seen that the group is closed."""
        before = await self._inserting()
        reminder = time.monotonic() + REMINDER
        while before:
            now = await self._inserting()
            before = {transaction: who for transaction, who in before.items() if transaction in now}
            who = ", ".join(sorted(set(before.values())))
            if before and time.monotonic() > deadline:
                raise EntityQError(
                    f"A transaction that has written to the outbox has not ended within {self._wait:g} s: {who}.",
                    advice="End it, or wait longer with --wait.",
                )
            if before and time.monotonic() > reminder:
                self._say(f"Waiting for a transaction that has written to the outbox: {who}.")
                reminder += REMINDER
            await asyncio.sleep(POLL if before else 0)

    async def _inserting(self) -> dict[str, str]:
        """By transaction, whose it is."""
        rows = await (await self._connection.execute(_SQL["read_inserting"])).fetchall()
        return {transaction: f"pid {pid} ({name or 'unnamed'})" for transaction, pid, name in rows}

    async def _own_shards(self, deadline: float, moves: Sequence[Move]) -> None:
        keys = {
            (lock_class(self._schema, self._namespace, "shard", move.group), number)
            for move in moves
            for number in move.numbers
        }
        reminder = time.monotonic() + REMINDER
        while missing := sorted(keys - self._taken):
            values = {
                "classes": [class_ for class_, _ in missing],
                "numbers": [number for _, number in missing],
            }
            rows = await (await self._connection.execute(_SQL["take_shards"], values)).fetchall()
            self._taken.update(rows)
            if self._taken >= keys:
                return
            now = time.monotonic()
            if now > deadline:
                raise EntityQError(
                    f"Shards are still held after {self._wait:g} s: by {await self._holders(moves)}.",
                    advice=f"Stop the workers of {_groups([move.group for move in moves])}, and try again.",
                )
            if now > reminder:
                self._say(f"Waiting for the shards of {await self._holders(moves)}.")
                reminder += REMINDER
            await asyncio.sleep(POLL)

    async def _holders(self, moves: Sequence[Move]) -> str:
        classes = [lock_class(self._schema, self._namespace, "shard", move.group) for move in moves]
        values = {"unsigned_classes": [unsigned(class_) for class_ in classes]}
        rows = await (await self._connection.execute(_SQL["read_holders"], values)).fetchall()
        return ", ".join(f"{name} ({count}, pid {pid})" for pid, name, count in rows) or "somebody"

    # ----- move, open

    async def _move(self, change: Change) -> None:
        moves = await self._moves()
        facts = await load_facts(self._connection, self._namespace)
        counts: dict[str, int] = {}
        reminder = time.monotonic() + REMINDER

        def progress(table: str, rows: int) -> None:
            nonlocal reminder
            counts[table] = counts.get(table, 0) + rows
            if time.monotonic() > reminder:
                reminder = time.monotonic() + REMINDER
                self._say(f"Moved {_rows(counts)}.")

        mover = RowMover(
            self._connection, moves, targets(facts, moves, change), batch=self._batch, progress=progress
        )
        await mover.run()
        self._say(f"Moved {_rows(counts) or 'nothing: there was nothing yet'}.")
        left = await mover.left_behind()
        if left:
            raise EntityQError(
                f"There are rows in old shards that were not there before: {', '.join(left)}.",
                advice="Is there a process with an older entityq? Stop it, and run the same command again.",
            )
        # Before anybody serves them: a stream of the same name gets new entries as soon as it is open.
        await self._forget_streams([shard for move in moves for shard in move.named])
        await self._open(change)

    async def _open(self, change: Change) -> None:
        async with self._connection.transaction():
            await self._connection.execute(_FACTS["wait_longer"])
            await self._connection.execute(_FACTS["lock_groups"])
            epoch = await fetch_value(self._connection, _SQL["read_epoch"], self._where)
            await self._connection.execute(_SQL["delete_shards"], self._where)
            await self._connection.execute(_SQL["create_shards"], {**self._where, "epoch": epoch + 1})
            if change.type is not None:
                values = {**self._where, "type": change.type, "group": change.group}
                await self._connection.execute(_SQL["move_type"], values)
            for name in ("open_groups", "forget_groups", "forget_reshard"):
                await self._connection.execute(_SQL[name], self._where)
            await notify_changed(self._connection, self._namespace)


# ----- decisions


def refuse_other(unfinished: Reshard, change: Change) -> None:
    """Raises EntityQError where another reshard than this one must be finished first."""
    if unfinished.change != change:
        raise EntityQError(
            f"The reshard of {unfinished.change} is not finished.",
            advice=f"Finish it first: `{unfinished.change.command}`.",
        )


def changes_something(facts: Facts, change: Change) -> bool:
    """Raises EntityQError for a group or a type that the cluster does not have."""
    if change.type is None:
        group = facts.groups.get(change.group)
        if group is None:
            raise EntityQError(
                f"The cluster {facts.namespace} has no shard group {change.group}.",
                advice=f"It has {', '.join(facts.groups) or 'none yet'}.",
            )
        return group.shards != change.shards
    if change.type not in facts.types:
        raise EntityQError(
            f"The cluster {facts.namespace} has no entity type {change.type}.",
            advice=f"It has {', '.join(facts.types) or 'none yet'}.",
        )
    return facts.types[change.type] != change.group


def new_counts(facts: Facts, change: Change) -> dict[str, int]:
    """How many shards the groups concerned are going to have, by name: all of these get new ids."""
    if change.type is None:
        return {change.group: change.shards or facts.groups[change.group].shards}
    return {name: facts.groups[name].shards for name in (facts.types[change.type], change.group)}


def targets(facts: Facts, moves: Sequence[Move], change: Change) -> Mapping[str, Move]:
    """Which group's new shards the entities of each type go to."""
    by_group = {move.group: move for move in moves}
    groups = {**facts.types, **({} if change.type is None else {change.type: change.group})}
    return {type_: by_group[group] for type_, group in groups.items() if group in by_group}


def _groups(names: Sequence[str] | Mapping[str, int]) -> str:
    return f"shard group{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def _rows(counts: Mapping[str, int]) -> str:
    words = {"entity": "entities", "pending": "unanswered requests", "timer": "timers", "outbox": "requests"}
    return ", ".join(f"{count:,} {words[table]}" for table, count in counts.items() if count)
