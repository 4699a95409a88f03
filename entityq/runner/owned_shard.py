"""A shard that this runner holds the lease of, with everything that lives and dies with that lease."""

import asyncio
from dataclasses import dataclass, field

from entityq.address import Address, Shard
from entityq.redis.publisher import Publisher
from entityq.runner.commit import Tenure
from entityq.runner.intake import ShardIntake


@dataclass(slots=True, eq=False)
class OwnedShard:
    """One lease. `publisher` numbers the requests that the shard's turns send."""

    shard: Shard
    tenure: Tenure
    stream: bytes
    intake: ShardIntake
    publisher: Publisher
    # Set while the intake is, or must go, catching up.
    behind: asyncio.Event = field(default_factory=asyncio.Event)
    # Entities that have a pending message which this runner's code does not know: what follows waits too.
    blocked: set[Address] = field(default_factory=set[Address])
    # True while rows of a deferred entity's own read are being admitted: they do not overtake.
    reading_deferred: bool = False

    @property
    def shard_id(self) -> int:
        return self.tenure.shard_id

    def must_catch_up(self) -> None:
        self.intake.must_catch_up()
        self.behind.set()
