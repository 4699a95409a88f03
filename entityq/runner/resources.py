"""What a runner's process has, whichever incarnation it is in."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from redis.asyncio import Redis

from entityq.call import Call
from entityq.client.publisher import Publisher
from entityq.config import Settings
from entityq.definition import EntityDefinition
from entityq.ports import Sender
from entityq.postgres.backlog import Backlog
from entityq.postgres.facts import Facts
from entityq.postgres.outbox import NewRequest
from entityq.redis.control import ControlChannel
from entityq.redis.keys import Keys
from entityq.redis.replies import ReplyPublisher


@dataclass(frozen=True, slots=True)
class Resources:
    """Connections, values and threads that outlive a lost lease session."""

    settings: Settings
    facts: Facts
    keys: Keys
    redis: Redis
    redis_url: str
    lease_url: str
    backlog: Backlog
    definitions: Mapping[str, EntityDefinition]
    client: Sender
    new_request: Callable[[Call], NewRequest]
    new_publisher: Callable[[], Publisher]
    replies: ReplyPublisher
    control: ControlChannel
    threads: Executor
