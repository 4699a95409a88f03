"""What a runner's process has, whichever incarnation it is in."""

from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from redis.asyncio import Redis

from entityq.config import Settings
from entityq.definition import EntityDefinition
from entityq.postgres.backlog import Backlog
from entityq.postgres.current_facts import CurrentFacts
from entityq.postgres.health import RunnerHealth
from entityq.postgres.retention import Retention
from entityq.postgres.signals import SignalRows
from entityq.postgres.transaction import TurnConnections
from entityq.redis.breaker import Breaker
from entityq.redis.control import ControlChannel
from entityq.redis.keys import Keys
from entityq.redis.replies import ReplyPublisher
from entityq.redis.streams import Streams
from entityq.runner.health_checks import NewHealthCheck
from entityq.runner.turn_sender import TurnClient
from entityq.serializer import Serializer


@dataclass(frozen=True, slots=True)
class Resources:
    """Connections, values and threads that outlive a lost lease session."""

    settings: Settings
    current_facts: CurrentFacts
    keys: Keys
    redis: Redis
    redis_url: str
    # Raises UnsafeConfiguration for a Redis that must not be used: asked at every new connection.
    admit: Callable[[], Awaitable[None]]
    lease_url: str
    backlog: Backlog
    definitions: Mapping[str, EntityDefinition]
    client: TurnClient
    # For the transactions of an incarnation, with the application_name of their sessions.
    new_turn_connections: Callable[[str], TurnConnections]
    serializer: Serializer
    streams: Streams
    breaker: Breaker
    replies: ReplyPublisher
    control: ControlChannel
    new_health_check: NewHealthCheck
    health: RunnerHealth
    retention: Retention
    signals: SignalRows
    threads: Executor
    # Seconds for which the event loop may stand still before the process ends.
    loop_limit: float
