"""What a client object owns: connections, tasks, and the parts that work on them."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Self

from psycopg import OperationalError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from entityq.batching import Batcher
from entityq.client.acceptor import Acceptor
from entityq.client.backpressure import Backpressure
from entityq.client.broadcasting import Broadcaster
from entityq.client.encoding import Encoder
from entityq.client.inserter import Inserter
from entityq.client.many import Many, ManyInserter, OrderedInserts
from entityq.client.publishing import Publishing
from entityq.client.reply_reader import ReplyReader
from entityq.client.send import Send
from entityq.client.streams import Streams
from entityq.client.volatile import VolatileSender
from entityq.client.waiter import Waiter
from entityq.codec import Limits
from entityq.config import Servers, Settings, masked_url
from entityq.definition import EntityDefinition
from entityq.errors import PersistenceError
from entityq.postgres.connect import Connection, connect
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.facts import Facts, load_facts, register_types
from entityq.postgres.membership import Member, live_runners
from entityq.postgres.migrate import require_schema
from entityq.postgres.notifier import Notifier
from entityq.postgres.outbox import read_replies
from entityq.postgres.safety import check_server, refuse_pooler
from entityq.postgres.session import Session
from entityq.redis import safety as redis_safety
from entityq.redis.breaker import Breaker
from entityq.redis.connect import open_client, open_connection
from entityq.redis.keys import Keys
from entityq.redis.publisher import Publisher
from entityq.redis.replies import ReplySubscription
from entityq.redis.streams import Streams as RedisStreams
from entityq.retry import RetryPolicy
from entityq.snowflake import Snowflakes

MAX_BATCH = 1_000
MAX_BATCH_BYTES = 4 * 1024 * 1024

# Seconds: for Postgres and for Redis at the start, for what is under way at the end.
OPEN_DEADLINE = 15.0
REDIS_DEADLINE = 1.0
CLOSE_DEADLINE = 2.0

_log = logging.getLogger(__name__)


class Machinery:
    """Made and started by `open`, ended by `close`."""

    def __init__(
        self,
        *,
        client_id: int,
        settings: Settings,
        servers: Servers,
        facts: Facts,
        ids: Snowflakes,
        policy: RetryPolicy,
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._policy = policy
        self._keys = Keys(facts.namespace)
        self._id = client_id
        self._connect = _connector(client_id, settings, servers)
        self._tasks = asyncio.TaskGroup()
        self._started = asyncio.Event()
        self._closing = asyncio.Event()
        self._stream_names: dict[int, bytes] = {}
        self._subscription: ReplySubscription | None = None
        self._ids = ids
        self.encoder = Encoder(facts.namespace, self._id, ids)
        self.reads = Session(self._connect)
        self.facts = CurrentFacts(facts, self._load_facts)
        self._notifier = Notifier(self.reads, facts.namespace)
        self.waiter = Waiter(self.read_replies)
        self.reader = ReplyReader(
            self.waiter,
            self.reads,
            limits=Limits(max_bytes=settings.max_reply),
            schema=settings.schema,
            namespace=facts.namespace,
        )
        self.streams = Streams(
            self.waiter,
            self.reader,
            self.reads,
            namespace=facts.namespace,
            limits=Limits(max_bytes=settings.max_reply),
        )

    @classmethod
    async def open(
        cls,
        settings: Settings,
        servers: Servers,
        definitions: Mapping[str, EntityDefinition],
        ids: Snowflakes,
        policy: RetryPolicy,
    ) -> Self:
        """Raises UnsafeConfiguration and PersistenceError."""
        types = {definition.type: definition.shard_group for definition in definitions.values()}
        # No snowflake: two clients with one id would take each other's numbers in the streams.
        client_id = secrets.randbits(63)
        try:
            async with asyncio.timeout(OPEN_DEADLINE):
                connection, facts = await _enter(client_id, settings, servers, types)
        except (OperationalError, TimeoutError) as error:
            reason = " ".join(str(error).split()) or f"no answer within {OPEN_DEADLINE:g} s"
            raise PersistenceError(
                f"Postgres at {masked_url(servers.postgres_url)} was lost while a client was opened: {reason}",
                advice="Try again when it is back.",
            ) from error
        machinery = cls(
            client_id=client_id, settings=settings, servers=servers, facts=facts, ids=ids, policy=policy
        )
        await machinery._start(connection)
        return machinery

    async def _start(self, connection: Connection) -> None:
        self._main = asyncio.create_task(
            self._run(Session(self._connect, first=connection)), name=f"entityq client {self._id}"
        )
        started = asyncio.create_task(self._started.wait(), name=f"entityq client {self._id} start")
        try:
            await asyncio.wait([self._main, started], return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if not self._started.is_set():
            await self._main  # raises why

    def subscribe(self) -> ReplySubscription:
        """The first time, it begins to; until it is subscribed, replies are read from the outbox."""
        if self._subscription is None:
            self._subscription = ReplySubscription(
                open_connection(self._servers.redis_url, name=f"entityq-client-{self._id}"),
                self._keys.reply_channel(self._id),
                received=self.streams.received,
                interrupted=self.streams.interrupted,
            )
            self._tasks.create_task(self._subscription.run(), name=f"entityq client {self._id} replies")
        return self._subscription

    async def listen(self, seconds: float) -> None:
        """Waits so long until it is subscribed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.subscribe().subscribed.wait()

    async def close(self) -> None:
        """What is under way gets two seconds."""
        self._closing.set()
        _, late = await asyncio.wait([self._main], timeout=CLOSE_DEADLINE)
        if late:
            self._main.cancel()
            await asyncio.wait([self._main])

    # ----- the main task

    async def _run(self, inserts: Session) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.reads.close)
            stack.push_async_callback(inserts.close)
            name = f"entityq-client-{self._id}"
            client = open_client(self._servers.redis_url, name=name, size=4)
            redis = await stack.enter_async_context(client)
            # Before the tasks: a refusal is raised as it is, not in a group.
            await self._check_redis(redis)
            await self._work(inserts, redis)

    async def _work(self, inserts: Session, redis: Redis) -> None:
        try:
            async with self._tasks:
                inserting = self._start_parts(inserts, redis)
                self._started.set()
                await self._closing.wait()
                self._inserts.close()
                await inserting
                raise _Closed
        except* _Closed:
            pass
        except* Exception:
            _log.exception("client.failed: everything that is sent with it is refused from now on")
            raise

    def _start_parts(self, session: Session, redis: Redis) -> asyncio.Task[None]:
        """Returns the task that inserts: it goes on until the batcher is closed."""
        streams, breaker = RedisStreams(redis, length=self._settings.stream_length), Breaker()
        publisher = Publisher(
            streams,
            breaker,
            stream_of=self.stream_of,
            sender=self._id,
            unpublished=self._notifier.add,
        )
        publishing = Publishing(publisher)
        namespace = self._settings.namespace
        backpressure = Backpressure(session, namespace, self._settings.max_pending)
        inserter = Inserter(
            session,
            namespace,
            connect=self._connect,
            tasks=self._tasks,
            backpressure=backpressure,
            publishing=publishing,
            renew=self.encoder.renewed,
            policy=self._policy,
        )
        many = ManyInserter(
            session, inserter, backpressure=backpressure, publishing=publishing, policy=self._policy
        )
        self._inserts = Batcher[Send | Many, Any](
            OrderedInserts(inserter.flush, many.insert).flush,
            max_items=MAX_BATCH,
            max_size=MAX_BATCH_BYTES,
        )
        self.acceptor = Acceptor(self._inserts, self._policy)
        self.volatile = VolatileSender(
            streams,
            self.encoder,
            self.waiter,
            self.reader,
            stream_of=self._keys.stream,
            facts=self.facts,
            policy=self._policy,
        )
        self.broadcaster = Broadcaster(
            redis,
            self._keys.control_channel(),
            encoder=self.encoder,
            ids=self._ids,
            waiter=self.waiter,
            facts=self.facts,
            members=self._live_runners,
            listen=self.listen,
        )
        for name, work in (
            ("publishing", publishing.run()),
            ("volatile", self.volatile.run()),
            ("notifier", self._notifier.run()),
            ("facts", self.facts.run()),
            ("waiter", self.waiter.run()),
        ):
            self._tasks.create_task(work, name=f"entityq client {self._id} {name}")
        return self._tasks.create_task(self._inserts.run(), name=f"entityq client {self._id} inserts")

    def stream_of(self, shard_id: int) -> bytes | None:
        """None for a shard that a reshard has made, until the facts are read again."""
        stream = self._stream_names.get(shard_id)
        if stream is None:
            shard = self.facts.shard(shard_id)
            if shard is None:
                return None
            stream = self._stream_names[shard_id] = self._keys.stream(shard)
        return stream

    async def _load_facts(self) -> Facts:
        return await self.reads.run(lambda connection: load_facts(connection, self._settings.namespace))

    async def read_replies(self, request_ids: Sequence[int]) -> dict[int, bytes | None]:
        return await self.reads.run(lambda connection: read_replies(connection, request_ids))

    async def _live_runners(self) -> tuple[Member, ...]:
        schema, namespace = self._settings.schema, self._settings.namespace
        return await self.reads.run(lambda connection: live_runners(connection, schema, namespace))

    async def _check_redis(self, redis: Redis) -> None:
        """Raises UnsafeConfiguration. A Redis that is down costs latency only."""
        address = masked_url(self._servers.redis_url)
        try:
            async with asyncio.timeout(REDIS_DEADLINE):
                await redis_safety.check_server(redis, address)
                await redis_safety.claim_namespace(redis, address, self._keys, self.facts.now.cluster_id)
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("client.redis_down at %s: all takes longer until it is back: %r", address, error)


async def _enter(
    client_id: int, settings: Settings, servers: Servers, types: Mapping[str, str]
) -> tuple[Connection, Facts]:
    """The first connection, checked, and the facts of a cluster that has these types."""
    await refuse_pooler(servers.postgres_url, setting="postgres_url", attempts=1)
    connection = await _connector(client_id, settings, servers)()
    try:
        await check_server(connection)
        await require_schema(connection, settings.schema)
        return connection, await register_types(connection, settings.namespace, types)
    except BaseException:
        await connection.close()
        raise


def _connector(client_id: int, settings: Settings, servers: Servers) -> Callable[[], Awaitable[Connection]]:
    return partial(
        connect,
        servers.postgres_url,
        schema=settings.schema,
        application_name=f"entityq client {client_id}",
    )


class _Closed(Exception):
    """Ends the tasks of a client."""
