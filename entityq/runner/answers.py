"""What becomes of a request that has its reply: the intake learns it, the caller is told, the entry goes."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from entityq.cause import Cause, plain_cause
from entityq.chunk import Chunk
from entityq.codec import Limits
from entityq.envelope import NOBODY
from entityq.errors import EntityQError, Interrupted
from entityq.replies import defect_reply
from entityq.reply import Reply
from entityq.runner.announcer import Announcer
from entityq.runner.commit import Applied, Commit, Committed
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.request import Request
from entityq.runner.shard_table import ShardTable
from entityq.runner.tasks import Tasks

log = logging.getLogger(__name__)

# Seconds. The heart beats in a thread of its own, and its certainty ends with time alone: there is no event.
LOOK_AGAIN = 0.1
MAX_WITHHELD = 1_000


def cancelled_reply(request: Request, limits: Limits) -> Reply:
    """Of a request that is not run."""
    envelope = request.envelope
    text = f"{envelope.message} to {envelope.address} was cancelled before it ran"
    return defect_reply(request.request_id, Interrupted, text, limits)


class Answers:
    """Of one incarnation. `limits` bounds replies; `commit` is for requests that no turn can answer.

    `may_answer`: whether this incarnation certainly still holds its shards.
    """

    def __init__(
        self,
        announcer: Announcer,
        shards: ShardTable,
        tasks: Tasks,
        commit: Callable[[Commit], Awaitable[Committed]],
        limits: Limits,
        *,
        may_answer: Callable[[], bool],
    ) -> None:
        self._announcer = announcer
        self._shards = shards
        self._tasks = tasks
        self._commit = commit
        self._limits = limits
        self._may_answer = may_answer
        self._withheld = deque[tuple[OwnedShard, Request, bytes]]()

    def committed(self, commit: Commit, applied: Applied) -> None:
        """A turn's commit was applied."""
        owned = self._shards.committing(commit.tenure)
        if owned is not None and applied.sent:
            self._announcer.requests(owned, applied.sent)
        self._tell(owned, commit.request, commit.encoded_reply)

    def chunks(self, request: Request, chunks: Sequence[Chunk]) -> None:
        """Values of a stream that are stored."""
        client = request.envelope.client
        if client != NOBODY:
            for chunk in chunks:
                self._announcer.reply(client, request.request_id, chunk.encode())

    def volatile(self, request: Request, reply: Reply) -> None:
        """A reply that is stored nowhere, and that no commit has checked.

        It is withheld while this runner may have been evicted: another one may have changed the entity. Where
        it was not, the reply is sent as soon as that is certain; where it was, the new owner of the shard finds
        the request in the stream.
        """
        owned = self._shards.holding(request.shard_id)
        if self._may_answer() or request.envelope.client == NOBODY:
            self._tell(owned, request, reply.encode())
            return
        envelope = request.envelope
        log.warning(
            "reply.withheld %s %s request=%s: another runner may have the shard",
            envelope.address,
            envelope.message,
            request.request_id,
        )
        if owned is not None:
            self._withhold(owned, request, reply.encode())

    def _withhold(self, owned: OwnedShard, request: Request, encoded: bytes) -> None:
        if not self._withheld:
            self._tasks.start(self._tell_withheld(), "withheld replies")
        self._withheld.append((owned, request, encoded))
        if len(self._withheld) > MAX_WITHHELD:
            # It stays in the stream, for whoever reads what is pending there next.
            owned, request, _ = self._withheld.popleft()
            owned.intake.forget(request.request_id)

    async def _tell_withheld(self) -> None:
        while self._withheld:
            await asyncio.sleep(LOOK_AGAIN)
            while self._withheld and (self._may_answer() or self._late(self._withheld[0][1])):
                self._end_withheld(*self._withheld.popleft())

    def _end_withheld(self, owned: OwnedShard, request: Request, encoded: bytes) -> None:
        if self._shards.committing(owned.tenure) is not owned:
            return  # It was given up meanwhile: its next owner claims the request.
        if self._may_answer():
            self._tell(owned, request, encoded)
        else:
            self._done(owned, request)

    @staticmethod
    def _late(request: Request) -> bool:
        """Whether nobody waits for the reply any more."""
        deadline = request.envelope.deadline_ms
        return deadline is not None and deadline < time.time() * 1000

    def refuse(self, request: Request, error: type[EntityQError], text: str) -> None:
        """`error` is raised at the caller of a volatile request."""
        self.volatile(request, defect_reply(request.request_id, error, text, self._limits))

    def acknowledge(self, owned: OwnedShard, entry_ids: Sequence[bytes]) -> None:
        """Entries that nothing is to be done for, here."""
        for entry_id in entry_ids:
            self._announcer.entry(owned.stream, entry_id)

    def without_turn(self, owned: OwnedShard, request: Request, error: type[EntityQError], text: str) -> None:
        """A persisted request that cannot or must not be run is answered, so that nobody waits for it."""
        reply = defect_reply(request.request_id, error, text, self._limits)
        cause = plain_cause(error.__name__, text)
        self._tasks.start(self._without_turn(owned, request, reply, cause), f"answer {request.request_id}")

    def cancelled(self, owned: OwnedShard, request: Request) -> None:
        """A persisted request that somebody has cancelled, and that has no turn."""
        reply = cancelled_reply(request, self._limits)
        self._tasks.start(self._without_turn(owned, request, reply, None), f"answer {request.request_id}")

    async def _without_turn(
        self, owned: OwnedShard, request: Request, reply: Reply, cause: Cause | None
    ) -> None:
        """`cause`: of a request that is given up."""
        commit = Commit(owned.tenure, request, reply, reply.encode(), given_up=cause)
        commit.attempts = request.lost + request.retries
        try:
            outcome = await self._commit(commit)
        except Exception:
            log.exception("request.unanswered request=%s", request.request_id)
            outcome = None
        if isinstance(outcome, Applied):
            self.committed(commit, outcome)
        else:
            # The next sweep brings it again.
            owned.intake.forget(request.request_id)

    def _tell(self, owned: OwnedShard | None, request: Request, encoded: bytes) -> None:
        if owned is not None:
            self._done(owned, request)
        if request.envelope.client != NOBODY:
            self._announcer.reply(request.envelope.client, request.request_id, encoded)

    def _done(self, owned: OwnedShard, request: Request) -> None:
        owned.intake.answered(request.request_id, request.seq)
        if request.entry_id is not None:
            self._announcer.entry(owned.stream, request.entry_id)
