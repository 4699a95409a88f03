"""The channels of NOTIFY on which runners are told what no stream has."""

import hashlib

# Of Postgres: the longest name of a channel.
_CHANNEL_BYTES = 63

# Seconds. The owner of a shard looks for new timers so often, and is told of those only that are due sooner than
# twice this: the cost of the others is nothing, and whatever is missed is seconds late at most.
LOOK_FOR_TIMERS_EVERY = 5.0
TOLD_OF_TIMERS_WITHIN = 2 * LOOK_FOR_TIMERS_EVERY


def timers_channel(namespace: str) -> str:
    """Timers that are due soon.

    Frozen: that of the name `timers:<namespace>`. (No namespace has a colon.)
    """
    return channel_of(f"timers:{namespace}")


def parse_timer(payload: str) -> tuple[int, float]:
    """A shard id, and when its timer is due by the database's clock, in seconds since 1970.

    The payload is the id and milliseconds since 1970, with a colon between them. Raises ValueError for what is none.
    """
    shard_id, due = payload.split(":")
    return int(shard_id), int(due) / 1000


def channel_of(name: str) -> str:
    """`entityq_<name>`, or, where that is longer than Postgres allows, with a BLAKE2b-128 of the name."""
    channel = f"entityq_{name}"
    if len(channel) <= _CHANNEL_BYTES:
        return channel
    return f"entityq_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
