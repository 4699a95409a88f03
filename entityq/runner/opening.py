"""Opens what a runner needs, in the order in which refusals are cheapest, and closes it in reverse."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from redis.exceptions import RedisError

from entityq.config import Servers, Settings, masked_url
from entityq.definition import EntityDefinition
from entityq.errors import UnsafeConfiguration
from entityq.postgres.backlog import Backlog
from entityq.postgres.connect import Pool, connect, connect_lease, open_pool, pooled
from entityq.postgres.connection_budget import warn_when_short
from entityq.postgres.cron import CronDesk
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.facts import Facts, load_facts, register_types
from entityq.postgres.health import RunnerHealth
from entityq.postgres.migrate import require_schema
from entityq.postgres.retention import Retention, declare
from entityq.postgres.safety import check_rights, check_same_database, check_server, refuse_pooler
from entityq.postgres.signals import SignalRows
from entityq.postgres.transaction import TurnConnections, split
from entityq.redis import safety as redis_safety
from entityq.redis.breaker import Breaker
from entityq.redis.connect import open_client, open_connection
from entityq.redis.control import ControlChannel
from entityq.redis.keys import Keys
from entityq.redis.replies import ReplyPublisher
from entityq.redis.streams import Streams
from entityq.runner.health_checks import health_checks
from entityq.runner.loop_watch import LIMIT
from entityq.runner.resources import Resources
from entityq.runner.runner import Runner
from entityq.runner.turn_sender import TurnClient
from entityq.schedules import equipped
from entityq.serializer import Serializer

log = logging.getLogger(__name__)

REDIS_DEADLINE = 1.0
# Seconds between two reads of the facts where nobody says that they are others.
FACTS_INTERVAL = 10.0


@asynccontextmanager
async def open_runner(
    settings: Settings,
    servers: Servers,
    definitions: Mapping[str, EntityDefinition],
    client: TurnClient,
    serializer: Serializer,
    *,
    name: str,
    groups: Sequence[str] = (),
    place: str = "",
    loop_limit: float = LIMIT,
) -> AsyncGenerator[Runner, None]:
    """A runner that is ready to `run`; `groups` empty: all of the cluster's; `place`: see Claim.

    `loop_limit`: seconds for which a handler may block the event loop before the process ends.

    Raises UnsafeConfiguration for what could lose or double work (P8), and PersistenceError when Postgres
    cannot be reached. Redis may be down: it is checked when it is back.
    """
    new_health_check = health_checks(settings, os.environ)
    facts = await check_postgres(settings, servers, definitions)
    _require_groups(facts, groups)
    keys = Keys(settings.namespace)
    threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="entityq turn")
    reads, turns = split(settings.pool_size)
    size = reads if _any_transactional(definitions) else settings.pool_size
    async with (
        open_pool(servers.postgres_url, schema=settings.schema, size=size) as pool,
        open_client(servers.redis_url) as redis,
    ):
        address = masked_url(servers.redis_url)
        admit = partial(redis_safety.admit, redis, address, keys, facts.cluster_id)
        await _ask_redis(admit, address)
        control = ControlChannel(redis, open_connection(servers.redis_url), keys.control_channel())
        current = CurrentFacts(facts, partial(_read_facts, pool, settings.namespace), every=FACTS_INTERVAL)
        resources = Resources(
            settings=settings,
            current_facts=current,
            keys=keys,
            redis=redis,
            redis_url=servers.redis_url,
            admit=admit,
            lease_url=servers.lease_url,
            backlog=Backlog(pool),
            definitions=equipped(definitions, facts.types, CronDesk(pool)),
            client=client,
            new_turn_connections=partial(
                TurnConnections, url=servers.postgres_url, pool=pool, size=turns, left=reads
            ),
            serializer=serializer,
            streams=Streams(redis, length=settings.stream_length),
            breaker=Breaker(),
            replies=ReplyPublisher(redis, keys),
            control=control,
            new_health_check=new_health_check,
            health=RunnerHealth(pool),
            retention=Retention(pool, settings.namespace, keep=settings.keep, keep_keys=settings.keep_keys),
            signals=SignalRows(pool),
            threads=threads,
            loop_limit=loop_limit,
        )
        try:
            yield Runner(name, groups, resources, place)
        finally:
            # A handler that was abandoned may still run in its thread: nobody waits for it.
            threads.shutdown(wait=False, cancel_futures=True)


def _any_transactional(definitions: Mapping[str, EntityDefinition]) -> bool:
    return any(
        message.transactional
        for definition in definitions.values()
        for message in definition.messages.values()
    )


async def _ask_redis(admit: Callable[[], Awaitable[None]], address: str) -> None:
    """Raises UnsafeConfiguration. A Redis that is down costs latency only."""
    try:
        async with asyncio.timeout(REDIS_DEADLINE):
            await admit()
    except (RedisError, OSError, TimeoutError) as error:
        log.warning("runner.redis_down at %s: reading from the outbox until it is back: %r", address, error)


def _require_groups(facts: Facts, groups: Sequence[str]) -> None:
    unknown = sorted(set(groups) - set(facts.groups))
    if unknown:
        raise UnsafeConfiguration(
            f"The cluster {facts.namespace} has no shard group {unknown[0]}.",
            advice=f"It has {', '.join(facts.groups) or 'none yet'}: correct the groups of this runner "
            "(-Q, ENTITYQ_GROUPS), or start it with an app that has a type of that group.",
        )


async def _read_facts(pool: Pool, namespace: str) -> Facts:
    async with pooled(pool) as connection:
        return await load_facts(connection, namespace)


async def check_postgres(
    settings: Settings, servers: Servers, definitions: Mapping[str, EntityDefinition]
) -> Facts:
    """The cluster's facts, with this app's types. Raises UnsafeConfiguration, PersistenceError."""
    await refuse_pooler(servers.lease_url, setting="lease_url")
    if servers.postgres_url != servers.lease_url:
        await refuse_pooler(servers.postgres_url, setting="postgres_url")
    async with (
        await connect(servers.postgres_url, schema=settings.schema) as connection,
        await connect_lease(servers.lease_url, schema=settings.schema) as lease,
    ):
        await check_server(connection)
        await require_schema(connection, settings.schema)
        await check_rights(connection, settings.schema)
        await check_same_database(connection, lease)
        await warn_when_short(connection, settings.pool_size)
        types = {definition.type: definition.shard_group for definition in definitions.values()}
        facts = await register_types(connection, settings.namespace, types)
        await declare(
            connection, settings.namespace, definitions, keep=settings.keep, keep_keys=settings.keep_keys
        )
        return facts
