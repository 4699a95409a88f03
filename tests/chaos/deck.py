"""Which fault comes when: pure, from the random numbers of a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random


class Area(Enum):
    RUNNER = "runner"
    POSTGRES = "postgres"
    REDIS = "redis"
    NETWORK = "network"
    PRODUCER = "producer"


@dataclass(frozen=True, slots=True)
class Kind:
    """`seconds`: the shortest and the longest that it lasts. `victims`: server, worker, producer, or process (a
    worker or a producer)."""

    area: Area
    victims: str
    seconds: tuple[float, float] = (0.0, 0.0)


# The lease time of the runners, in seconds: some freezes end within it, some do not.
LEASE_TIME = 2.0

KINDS = {
    "runner-killed": Kind(Area.RUNNER, "worker"),
    "worker-killed": Kind(Area.RUNNER, "worker", (0.2, 2.0)),
    "host-killed": Kind(Area.RUNNER, "worker", (0.2, 2.0)),
    "runner-frozen-briefly": Kind(Area.RUNNER, "worker", (0.2, 1.0)),
    "runner-frozen": Kind(Area.RUNNER, "worker", (1.5 * LEASE_TIME, 3 * LEASE_TIME)),
    "worker-drained": Kind(Area.RUNNER, "worker", (0.0, 1.0)),
    "worker-rolled": Kind(Area.RUNNER, "worker"),
    "lease-terminated": Kind(Area.POSTGRES, "server"),
    "backends-terminated": Kind(Area.POSTGRES, "server"),
    "postgres-killed": Kind(Area.POSTGRES, "server", (0.0, 2.0)),
    "postgres-restarted": Kind(Area.POSTGRES, "server"),
    "postgres-frozen": Kind(Area.POSTGRES, "server", (0.3, 1.5 * LEASE_TIME)),
    "valkey-killed": Kind(Area.REDIS, "server", (0.0, 3.0)),
    "valkey-flushed": Kind(Area.REDIS, "server"),
    "valkey-frozen": Kind(Area.REDIS, "server", (0.3, 3.0)),
    "postgres-cut": Kind(Area.NETWORK, "process", (0.0, 1.5)),
    "postgres-lost": Kind(Area.NETWORK, "process", (0.5, 2.5 * LEASE_TIME)),
    "postgres-slow": Kind(Area.NETWORK, "process", (1.0, 4.0)),
    "redis-cut": Kind(Area.NETWORK, "process", (0.0, 1.5)),
    "redis-lost": Kind(Area.NETWORK, "process", (0.5, 5.0)),
    "redis-slow": Kind(Area.NETWORK, "process", (1.0, 4.0)),
    "producer-killed": Kind(Area.PRODUCER, "producer", (0.0, 1.0)),
}

# Seconds between the beginnings of two faults.
GAP = (0.5, 1.8)


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault, `at` so many seconds after the start. `victim` is "server", or the number of a worker ("w1") or
    a producer ("p1")."""

    at: float
    kind: str
    victim: str
    seconds: float


def area_of(kind: str) -> Area:
    return KINDS[kind].area


def deal(random: Random, kinds: Sequence[str], *, workers: int, producers: int) -> Iterator[Strike]:
    """Without end: all kinds in a random order, then all of them again in another one, ..."""
    at = 0.0
    names = {
        "server": ["server"],
        "worker": [f"w{number + 1}" for number in range(workers)],
        "producer": [f"p{number + 1}" for number in range(producers)],
    }
    names["process"] = names["worker"] + names["producer"]
    while True:
        for name in random.sample(kinds, len(kinds)):
            kind = KINDS[name]
            at += random.uniform(*GAP)
            yield Strike(at, name, random.choice(names[kind.victims]), random.uniform(*kind.seconds))
