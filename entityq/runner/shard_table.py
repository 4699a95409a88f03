"""The shards that a runner owns now, by id and by stream."""

from collections.abc import Collection, Iterator

from entityq.runner.commit import Tenure
from entityq.runner.owned_shard import OwnedShard


class ShardTable:
    """A shard is in the table from the moment its lease is acquired, and readable once its stream was joined."""

    def __init__(self) -> None:
        self._by_id: dict[int, OwnedShard] = {}
        self._by_stream: dict[bytes, OwnedShard] = {}
        # Out of the table, while their last turns end.
        self._leaving: dict[Tenure, OwnedShard] = {}

    def __iter__(self) -> Iterator[OwnedShard]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, shard_id: int) -> bool:
        return shard_id in self._by_id

    def get(self, shard_id: int) -> OwnedShard | None:
        return self._by_id.get(shard_id)

    def owns(self, owned: OwnedShard) -> bool:
        """Whether this very lease lasts, and is not being given up."""
        return self._by_id.get(owned.shard_id) is owned

    def under(self, tenure: Tenure) -> OwnedShard | None:
        """The shard, if it is owned under the very same lease: a turn can outlive its own."""
        owned = self._by_id.get(tenure.shard_id)
        return owned if owned is not None and owned.tenure == tenure else None

    def committing(self, tenure: Tenure) -> OwnedShard | None:
        """The shard under this lease, also while it is being given up and its last turns commit."""
        return self.under(tenure) or self._leaving.get(tenure)

    def holding(self, shard_id: int) -> OwnedShard | None:
        """The shard, also while it is being given up."""
        leaving = (owned for owned in self._leaving.values() if owned.shard_id == shard_id)
        return self._by_id.get(shard_id) or next(leaving, None)

    def add(self, owned: OwnedShard) -> None:
        self._by_id[owned.shard_id] = owned

    def make_readable(self, owned: OwnedShard) -> None:
        """Unless it was given up meanwhile."""
        if self.owns(owned):
            self._by_stream[owned.stream] = owned

    def remove(self, shard_id: int) -> OwnedShard | None:
        """It is given up from now on; `given_up` must follow."""
        owned = self._by_id.pop(shard_id, None)
        if owned is not None:
            self._by_stream.pop(owned.stream, None)
            self._leaving[owned.tenure] = owned
        return owned

    def given_up(self, owned: OwnedShard) -> None:
        """Its turns have ended, or were abandoned."""
        del self._leaving[owned.tenure]

    @property
    def streams(self) -> Collection[bytes]:
        """Of the readable shards."""
        return self._by_stream.keys()

    def reading(self, stream: bytes) -> OwnedShard | None:
        return self._by_stream.get(stream)
