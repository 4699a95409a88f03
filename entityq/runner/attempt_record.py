"""What a process that ends itself leaves behind, so that the next owner does not fall into the same hole for ever.

It runs in the heart's loop, while the runner's own stands still: nothing of the runner's own can be used.
"""

import logging
from collections.abc import Awaitable, Callable

from entityq.codec import Limits
from entityq.errors import EntityDefect
from entityq.postgres.pinned_connection import Parameters, Rows
from entityq.postgres.queries import load
from entityq.redis.connect import open_client
from entityq.redis.consumer import StreamGroups
from entityq.redis.replies import ReplyPublisher
from entityq.replies import defect_reply
from entityq.runner.attempts import given_up_text
from entityq.runner.request import Request
from entityq.runner.resources import Resources

log = logging.getLogger(__name__)

RECORD_ATTEMPT = load("attempts.sql")["record_attempt"]

_NOWHERE = {"shard_id": 0, "seq": 0, "request_id": 0}


class AttemptRecord:
    """Of one incarnation. `execute`: a statement of the heart."""

    def __init__(
        self,
        execute: Callable[[bytes, Parameters], Awaitable[Rows]],
        resources: Resources,
        consumer: bytes,
        incarnation: int,
    ) -> None:
        self._execute = execute
        self._resources = resources
        self._consumer = consumer
        self._incarnation = incarnation

    async def write(self, request: Request | None) -> None:
        """A turn of the request ends its process, or (None) something else does that no request is to blame for.

        Raises what the servers' connections raise.
        """
        if request is not None and request.envelope.persisted:
            await self._count(request)
            return
        await self._execute(RECORD_ATTEMPT, {**_NOWHERE, "incarnation": self._incarnation})
        if request is not None:
            await self._give_up(request)

    async def _count(self, request: Request) -> None:
        place = {"shard_id": request.shard_id, "seq": request.seq, "request_id": request.request_id}
        rows = await self._execute(RECORD_ATTEMPT, {**place, "incarnation": self._incarnation})
        log.error("attempt.recorded request=%s attempts=%s", request.request_id, rows and rows[0][0])

    async def _give_up(self, request: Request) -> None:
        """A volatile request is in the stream alone, where nothing is counted, and its next owner would take it."""
        resources, envelope = self._resources, request.envelope
        text = given_up_text(envelope)
        reply = defect_reply(request.request_id, EntityDefect, text, Limits(resources.settings.max_reply))
        stream = resources.keys.stream(resources.current_facts.now.shard(request.shard_id))
        async with open_client(resources.redis_url) as redis:
            if request.entry_id is not None:
                await StreamGroups(redis, self._consumer).acknowledge({stream: [request.entry_id]})
            replies = {envelope.client: [(request.request_id, reply.encode())]}
            await ReplyPublisher(redis, resources.keys).publish(replies)
        log.error("request.given_up request=%s: %s", request.request_id, text)
