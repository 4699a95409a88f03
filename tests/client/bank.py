"""The app of the client's tests, without runners: the tests answer by hand."""

from dataclasses import dataclass
from typing import Any

import psycopg
from redis.asyncio import Redis

from entityq import Entity, EntityQ, Failure, message
from entityq.address import Address
from entityq.call import Call, CallOptions, new_call
from entityq.codec import Limits
from entityq.entry import Entry, decode_entry
from entityq.envelope import Envelope, decode_envelope
from entityq.redis.keys import Keys
from entityq.redis.replies import ReplyPublisher
from entityq.reply import Outcome, Reply

Outbox = psycopg.Connection[tuple[Any, ...]]


class InsufficientFunds(Failure):
    balance: int


class Account(Entity):
    balance: int = 0

    @message(primary_key="reference")
    async def deposit(self, amount: int, reference: str) -> int:
        raise NotImplementedError

    @message
    async def note(self, text: str) -> None:
        raise NotImplementedError

    @message(persisted=False)
    async def read(self) -> int:
        raise NotImplementedError


class Bank:
    """One app with one entity type; every Bank has its own."""

    def __init__(self, namespace: str, postgres_url: str, redis_url: str, **settings: Any) -> None:
        self.app = EntityQ(namespace, postgres_url=postgres_url, redis_url=redis_url, **settings)
        self._account: type[Account] = self.app.entity(type("Account", (Account,), {}))

    def account(self, entity_id: str) -> Account:
        return self._account.at(entity_id)

    def note(self, text: str = "x") -> Call:
        """To account a, for a client that is not the app's own."""
        return self._call("note", text)

    def deposit(self, amount: int, reference: str) -> Call:
        return self._call("deposit", amount, reference)

    def read(self) -> Call:
        return self._call("read")

    def _call(self, name: str, *arguments: object) -> Call:
        definition = self.app.definitions["Account"]
        return new_call(
            definition,
            definition.messages[name],
            lambda _: Address("Account", "a"),
            args=arguments,
            kwargs={},
            options=CallOptions(),
            serializer=self.app.serializer,
        )


@dataclass(frozen=True)
class Row:
    request_id: int
    seq: int
    shard_id: int
    entity_id: str
    message: str
    envelope: Envelope


def rows(outbox: Outbox) -> list[Row]:
    """Of the whole outbox, in its order; each of them pending."""
    found = outbox.execute(
        "SELECT o.request_id, o.seq, o.shard_id, o.entity_id, o.message, o.envelope, p.seq IS NOT NULL"
        " FROM outbox o LEFT JOIN pending p USING (request_id, seq, shard_id) ORDER BY o.seq"
    ).fetchall()
    assert all(pending for *_, pending in found)
    return [Row(a, b, c, d, e, decode_envelope(envelope, Limits())) for a, b, c, d, e, envelope, _ in found]


def answer(outbox: Outbox, request_id: int, value: bytes) -> bytes:
    """Stores a reply as a runner does, without telling anybody; returns its bytes."""
    encoded = Reply(request_id, Outcome.SUCCESS, "", value).encode()
    outbox.execute(
        "WITH done AS (DELETE FROM pending WHERE request_id = %s)"
        " UPDATE outbox SET reply = %s, replied_at = now() WHERE request_id = %s",
        [request_id, encoded, request_id],
    )
    return encoded


async def tell(redis: Redis, namespace: str, client: int, request_id: int, encoded: bytes) -> None:
    """As a runner does after its commit."""
    await ReplyPublisher(redis, Keys(namespace)).publish({client: [(request_id, encoded)]})


async def published(redis: Any) -> dict[bytes, list[Entry]]:
    """The entries of all streams, by stream."""
    names = [name async for name in redis.scan_iter(match=b"eq:*:stream:*")]
    return {name: [decode_entry(fields) for _, fields in await redis.xrange(name)] for name in sorted(names)}
