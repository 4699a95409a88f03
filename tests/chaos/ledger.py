"""The app: entities whose durable state tells which turns were applied, in order."""

import asyncio
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from entityq import Entity, EntityQ, EntityQError, Failure, message
from tests.chaos.entry import Entry

app = EntityQ("chaos")


@dataclass(frozen=True, slots=True)
class Told:
    """The reply of a turn: the same for everybody, and of no other run of the handler. `place` is that of its
    line in the journal, from 1; `heard`: nothing that the turn asked for has failed."""

    request: int
    place: int
    run: str
    heard: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """What a volatile read saw: the number of lines, and the run of the last one."""

    lines: int
    run: str


class Refused(Failure):
    request: int
    run: str


class Book(Entity):
    """A list and not a digest, so that the check can say which turn is missing; the load moves on to other
    entities before it gets long."""

    journal: list[str] = []

    def _write(self, origin: str, n: int, *, heard: bool = True) -> Told:
        epoch, version = self.context.fencing_token
        entry = Entry(version, epoch, self.context.request_id, origin, n, secrets.token_hex(4))
        self.journal.append(entry.line())
        return Told(entry.request, len(self.journal), entry.run, heard)


@app.entity(mailbox_capacity=20, max_idle=5)
class Ledger(Book):
    """`chained` counts what its turns sent."""

    chained: int = 0

    @message
    async def note(self, origin: str, n: int, pause: float = 0.0) -> Told:
        await asyncio.sleep(pause)
        return self._write(origin, n)

    @message(primary_key="key")
    async def put(self, key: str, variant: int, pause: float = 0.0) -> Told:
        await asyncio.sleep(pause)
        return self._write(key, variant)

    @message(primary_key="key")
    async def refuse(self, key: str, variant: int) -> Told:
        """Nothing of it may be found in the journal."""
        told = self._write(key, variant)
        raise Refused(request=told.request, run=told.run)

    @message
    async def chain(self, origin: str, n: int, targets: list[str]) -> Told:
        for target in targets:
            self.chained += 1
            await Ledger.at(target).note.send(f"@{self.id}", self.chained)
        return self._write(origin, n)

    @message(persisted=False)
    async def read(self) -> Seen:
        return Seen(len(self.journal), Entry.parse(self.journal[-1]).run if self.journal else "")


@app.entity(max_idle=5)
class Desk(Book):
    @message
    async def consult(self, origin: str, n: int, target: str) -> Told:
        """Asks a ledger in the middle of its turn."""
        heard = True
        try:
            await Ledger.at(target).note(f"?{self.context.request_id}", n)
        except EntityQError:
            heard = False
        return self._write(origin, n, heard=heard)


def plain(value: Told | Seen | Refused) -> dict[str, Any]:
    """A reply as it is written down."""
    if isinstance(value, Refused):
        return {"refused": True, "request": value.request, "run": value.run}
    return asdict(value)
