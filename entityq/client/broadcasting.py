"""Broadcasts: told to all runners at once over the control channel; each answers on the reply channel."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from psycopg import Error
from redis.exceptions import RedisError

from entityq.broadcast import Broadcast, read_reached, tally
from entityq.call import Call
from entityq.client.encoding import Encoder
from entityq.client.settlement import unknown_type
from entityq.client.waiter import Waiter, Waiting
from entityq.errors import Accepted, PersistenceError, SendTimeout
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.membership import Member
from entityq.postgres.session import ConnectionLost
from entityq.redis.broadcasts import broadcast_message
from entityq.redis.control import Publishes
from entityq.redis.deadline import deadline
from entityq.reply import decode_reply
from entityq.snowflake import Snowflakes


class Broadcaster:
    """Of one client object.

    Args:
        channel: the control channel's name.
        members: reads who is alive.
        listen: waits so many seconds until the reply channel is subscribed.
        ids: of the answers that are expected.
    """

    def __init__(
        self,
        redis: Publishes,
        channel: bytes,
        *,
        encoder: Encoder,
        ids: Snowflakes,
        waiter: Waiter,
        facts: CurrentFacts,
        members: Callable[[], Awaitable[Sequence[Member]]],
        listen: Callable[[float], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._channel = channel
        self._encoder = encoder
        self._ids = ids
        self._waiter = waiter
        self._facts = facts
        self._members = members
        self._listen = listen

    async def broadcast(self, call: Call, by: float) -> Broadcast:
        """Returns when all live runners have answered, at the latest at the time `by` of the loop.

        Raises PersistenceError when nobody can say which runners are alive, SendTimeout when Redis does not
        take it.
        """
        asked = {runner: self._ids.new() for runner in await self._runners(call, by)}
        if not asked:
            return tally(0, [])
        # The answers are told once, on the channel.
        await self._listen(_left(by))
        waiting = [self._waiter.expect(request_id, persisted=False) for request_id in asked.values()]
        try:
            await self._publish(call, asked, by)
            answered = await self._answered(waiting, by)
        finally:
            for each in waiting:
                self._waiter.forget(each)
        answers = [decode_reply(each.request_id, each.reply.result()) for each in answered]
        return tally(len(asked), [read_reached(answer) for answer in answers])

    async def _runners(self, call: Call, by: float) -> list[int]:
        """The incarnations of the live runners that serve the type's group."""
        facts = self._facts.now
        group = facts.types.get(call.address.type)
        if group is None:
            raise unknown_type(call.address.type, facts.namespace)
        try:
            async with asyncio.timeout_at(by):
                members = await self._members()
        except (ConnectionLost, Error, TimeoutError) as error:
            raise PersistenceError(
                f"{_what(call)} was not broadcast: the live runners cannot be read: {str(error) or 'no answer'}"
            ) from error
        return [member.incarnation for member in members if group in member.groups]

    async def _publish(self, call: Call, asked: dict[int, int], by: float) -> None:
        left = _left(by)
        envelope = self._encoder.request(call, left).envelope
        message = broadcast_message(envelope, asked).encode()
        try:
            async with deadline(left):
                await self._redis.publish(self._channel, message)
        except (RedisError, OSError, TimeoutError) as error:
            refused = SendTimeout(
                f"Redis did not take the broadcast of {_what(call)}: {str(error) or 'no answer'}",
                accepted=Accepted.NO,
                advice="Broadcasts need Redis: do it again when it is back.",
            )
            refused.retryable = True
            raise refused from error

    async def _answered(self, waiting: Sequence[Waiting], by: float) -> list[Waiting]:
        await asyncio.wait([each.reply for each in waiting], timeout=_left(by))
        return [each for each in waiting if each.reply.done()]


def _left(by: float) -> float:
    return max(0.0, by - asyncio.get_running_loop().time())


def _what(call: Call) -> str:
    return f"{call.address.type}.{call.message.name}"
