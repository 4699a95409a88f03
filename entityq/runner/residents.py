"""The activations of one runner: who is resident, who is idle, and whether there is room for another."""

from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from entityq.address import Address
from entityq.runner.activation import Activation


class Residents:
    """A bounded table of activations, by shard and address. Idle ones are kept in order of last use."""

    def __init__(self, limit: int) -> None:
        self._activations: dict[tuple[int, Address], Activation] = {}
        self._idle: OrderedDict[tuple[int, Address], Activation] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._activations)

    def __iter__(self) -> Iterator[Activation]:
        return iter(list(self._activations.values()))

    def get(self, shard_id: int, address: Address) -> Activation | None:
        return self._activations.get((shard_id, address))

    @property
    def full(self) -> bool:
        return len(self._activations) >= self._limit

    def add(self, activation: Activation) -> None:
        self._activations[activation.tenure.shard_id, activation.address] = activation

    @contextmanager
    def lent(self) -> Generator[None]:
        """For the time that a turn waits for another one, which may need a place: one more may be resident."""
        self._limit += 1
        try:
            yield
        finally:
            self._limit -= 1

    def busy(self, activation: Activation) -> None:
        self._idle.pop((activation.tenure.shard_id, activation.address), None)

    def became_idle(self, activation: Activation) -> None:
        key = (activation.tenure.shard_id, activation.address)
        if self._activations.get(key) is activation:
            self._idle[key] = activation
            self._idle.move_to_end(key)

    def remove(self, activation: Activation) -> None:
        key = (activation.tenure.shard_id, activation.address)
        if self._activations.get(key) is activation:
            del self._activations[key]
        self._idle.pop(key, None)

    def longest_idle(self) -> Activation | None:
        return next(iter(self._idle.values()), None)

    def idle_since(self, now: float) -> list[Activation]:
        """Idle activations that have outlived their type's `max_idle`, the longest idle first."""
        return [
            activation
            for activation in self._idle.values()
            if now - activation.last_used >= activation.definition.max_idle
        ]

    def of_shard(self, shard_id: int) -> list[Activation]:
        return [activation for (shard, _), activation in self._activations.items() if shard == shard_id]
