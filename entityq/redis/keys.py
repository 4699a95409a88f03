"""Every key and channel name of a namespace in Redis. Frozen: all versions of the code share the names.

The namespace stands in literal braces, a Redis Cluster hash tag: all keys of a namespace are in one slot, so
that one XREADGROUP can read many streams. Names are bytes, as they come back from Redis.
"""

from entityq.address import Shard

# The one consumer group of every stream; its consumers are incarnations.
CONSUMER_GROUP = b"runner"


class Keys:
    """The names of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"eq:{{{namespace}}}:"

    def stream(self, shard: Shard) -> bytes:
        """The shard's stream of requests."""
        return self._key(f"stream:{shard.group}:{shard.number}")

    def reply_channel(self, client: int) -> bytes:
        """Where replies are published for one client object."""
        return self._key(f"reply:{client}")

    def wake_stream(self, incarnation: int) -> bytes:
        """An entry here ends the blocking read of one runner."""
        return self._key(f"wake:{incarnation}")

    def control_channel(self) -> bytes:
        """Where runners and operators tell each other what changed."""
        return self._key("control")

    def cluster(self) -> bytes:
        """Holds the cluster id, so that a second cluster on the same namespace is noticed."""
        return self._key("cluster")

    def rate(self, name: str) -> bytes:
        """How far the cluster has used up a rate limit."""
        return self._key(f"rate:{name}")

    def _key(self, name: str) -> bytes:
        return (self._prefix + name).encode()
