"""What a handler gets of a transaction where there is no Postgres."""

from typing import NoReturn

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from entityq.errors import EntityQError
from entityq.reply import Reply
from entityq.runner.commit import Commit, Committed, NotApplied
from entityq.runner.defect import Defect
from entityq.runner.turn import TurnLimits


class NoTransaction:
    """A HandlerTransaction for turns that use none; all others end with a defect that says so."""

    refusal: NotApplied | None = None
    open = False

    @property
    def connection(self) -> AsyncConnection[TupleRow]:
        self._refuse()

    @property
    def blocking_connection(self) -> Connection[TupleRow]:
        self._refuse()

    async def begin(self) -> AsyncConnection[TupleRow]:
        self._refuse()

    def begin_blocking(self) -> Connection[TupleRow]:
        self._refuse()

    async def begin_for(self, *, is_async: bool) -> None:
        """A handler that does not use its connection need not know."""

    async def settle(self, result: Reply | Defect, limits: TurnLimits) -> Reply | Defect:
        return result

    async def commit(self, commit: Commit) -> Committed:
        self._refuse()

    async def end(self) -> None: ...

    def _refuse(self) -> NoReturn:
        raise EntityQError(
            "entityq.testing has no Postgres, so the turn has no transaction",
            advice="Test this message with a runner (`entityq dev`, or app.open_runner), or its SQL by itself.",
        )
