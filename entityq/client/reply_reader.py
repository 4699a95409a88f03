"""From a request that is accepted to its result, or to the reason why there is none yet."""

import asyncio
from typing import Any

from psycopg import Error

from entityq.call import Call
from entityq.client.deadline import until
from entityq.client.send import Acceptance
from entityq.client.silence import explain_silence
from entityq.client.waiter import Waiter, Waiting
from entityq.codec import Limits
from entityq.errors import Accepted, EntityQError, PersistenceError, ReplyExpired
from entityq.postgres.membership import Member, live_runners
from entityq.postgres.session import ConnectionLost, Session
from entityq.replies import result_of
from entityq.reply import EXPIRED, decode_reply

# Seconds, after a caller's own timeout.
DIAGNOSIS_DEADLINE = 1.0


class ReplyReader:
    """Of one client object."""

    def __init__(
        self, waiter: Waiter, reads: Session, *, limits: Limits, schema: str, namespace: str
    ) -> None:
        self._waiter = waiter
        self._reads = reads
        self._limits = limits
        self._schema = schema
        self._namespace = namespace
        self._asking: asyncio.Task[tuple[Member, ...] | None] | None = None

    async def wait(self, call: Call, acceptance: Acceptance, patience: float) -> Any:
        """The result, within `patience` seconds, of a request that may have been answered already."""
        if acceptance.reply is not None:
            return self.result(call, acceptance.request_id, acceptance.reply)
        deadline = asyncio.get_running_loop().time() + patience
        waiting = self._waiter.expect(acceptance.request_id, at_once=True)
        try:
            return await self.read(call, waiting, patience, deadline)
        finally:
            self._waiter.forget(waiting)

    async def read(self, call: Call, waiting: Waiting, patience: float, deadline: float) -> Any:
        """The result, by `deadline`, a time of the loop. Raises the failure, or why there is no reply.

        `patience` is the whole timeout in seconds, for the error.
        """
        try:
            encoded = await until(waiting.reply, deadline)
        except TimeoutError:
            raise await self.silence(call, waiting.request_id, patience) from None
        return self.result(call, waiting.request_id, encoded)

    async def silence(self, call: Call, request_id: int, patience: float) -> EntityQError:
        """Why there is no reply after so many seconds."""
        return explain_silence(call, request_id, patience, await self._live_runners())

    def result(self, call: Call, request_id: int, encoded: bytes) -> Any:
        if encoded == EXPIRED:
            raise ReplyExpired(
                f"The reply of {call.address} to {call.message.name} is no longer kept",
                accepted=Accepted.YES,
                request_id=request_id,
                advice="Wait for replies within the time that they are kept (keep).",
            )
        return result_of(decode_reply(request_id, encoded), call.message, self._limits)

    async def _live_runners(self) -> tuple[Member, ...] | None:
        """None when nobody can be asked. Those whose timeouts end together ask once."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="entityq who is alive")
        return await asyncio.shield(self._asking)

    async def _ask(self) -> tuple[Member, ...] | None:
        try:
            async with asyncio.timeout(DIAGNOSIS_DEADLINE):
                return await self._reads.run(
                    lambda connection: live_runners(connection, self._schema, self._namespace)
                )
        except (PersistenceError, ConnectionLost, Error, TimeoutError):
            return None
