"""What handlers must not do with the connection of their turn's transaction, as the texts of their defects."""

from collections.abc import Mapping
from typing import NamedTuple

from psycopg.pq import TransactionStatus

from entityq.errors import EntityQError


class Misuse(NamedTuple):
    """What a handler has done to the transaction of its turn."""

    what: str
    advice: str

    def error(self) -> EntityQError:
        return EntityQError(self.what, advice=self.advice)


ENDED = Misuse(
    "the handler has ended the transaction of its turn: what it did until then is as it left it, the rest is undone",
    "Leave commit and rollback to the turn: raise an exception to roll back, and use a savepoint for a part.",
)

# What the handler can leave behind, by the state of the connection.
WRONG: Mapping[TransactionStatus, Misuse] = {
    TransactionStatus.IDLE: ENDED,
    TransactionStatus.INERROR: Misuse(
        "a statement of the handler has failed, which has undone its transaction, and the handler went on",
        "Let the error out, or run what may fail in `self.context.transaction()`: the block is a savepoint.",
    ),
    TransactionStatus.ACTIVE: Misuse(
        "a statement of the handler still runs in the transaction of its turn",
        "Await everything that a handler starts before it returns.",
    ),
    TransactionStatus.UNKNOWN: Misuse(
        "the connection of the turn's transaction has ended: nothing of it is committed",
        "The log of Postgres says why; a transaction that is idle for a minute is ended, too.",
    ),
}


def of_the_other_kind(other: str) -> EntityQError:
    return EntityQError(
        "the connection of this turn is of the other kind",
        advice=f"Use {other}: an async def has an AsyncConnection, a plain function a Connection.",
    )
