"""What a producer does next: pure, from the random numbers of its seed."""

import zlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

# Entities and shared keys at a time, and seconds until the load moves on to others: it bounds each journal.
ENTITIES = 24
SHARED_KEYS = 150
GENERATION = 10.0

# Weights. A burst is several sends, one after the other, to one entity.
KINDS = {
    "send": 30,
    "burst": 6,
    "ask": 12,
    "private": 14,
    "shared": 16,
    "conflict": 3,
    "refuse": 4,
    "chain": 6,
    "consult": 4,
    "read": 8,
}
KEYED = frozenset({"private", "shared", "conflict", "refuse"})


@dataclass(frozen=True, slots=True)
class Operation:
    """`key` and `variant` for keyed messages; `waits`: asked, not sent."""

    kind: str
    entity: str
    message: str
    type: str = "Ledger"
    key: str | None = None
    variant: int = 0
    waits: bool = False
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


def plan(random: Random, sender: str, n: int, elapsed: float) -> list[Operation]:
    """The operations from number `n` on, `elapsed` seconds after the start of the run: one, or a burst."""
    kind = random.choices(list(KINDS), list(KINDS.values()))[0]
    generation = int(elapsed / GENERATION)
    entity = _entity(random, generation)
    if kind == "burst":
        return [Operation("send", entity, "note") for _ in range(random.randint(2, 8))]
    if kind in KEYED:
        return [_keyed(random, kind, f"{sender}/{n}", generation)]
    if kind == "chain":
        targets = [_entity(random, generation) for _ in range(random.randint(1, 4))]
        return [Operation(kind, entity, "chain", waits=random.random() < 0.5, arguments={"targets": targets})]
    if kind == "consult":
        arguments = {"target": _entity(random, generation)}
        return [Operation(kind, entity, "consult", type="Desk", waits=True, arguments=arguments)]
    if kind == "read":
        return [Operation(kind, entity, "read", waits=True)]
    return [
        Operation(kind, entity, "note", waits=kind == "ask", arguments={"pause": _pause(random)}),
    ]


def keyed(kind: str, key: str, variant: int, *, waits: bool = True) -> Operation:
    """Who has the key knows the entity and the payload."""
    generation = int(key.split(".", 1)[0])
    entity = f"{generation}.{zlib.crc32(key.encode()) % ENTITIES}"
    message = "refuse" if kind == "refuse" else "put"
    return Operation(kind, entity, message, key=key, variant=variant, waits=waits)


def _keyed(random: Random, kind: str, own: str, generation: int) -> Operation:
    if kind in {"private", "refuse"}:
        return keyed(kind, f"{generation}.{own}", 0, waits=random.random() < 0.6)
    # Some of the keys of earlier generations, too: their entities have left the memory of the runners.
    chosen = max(0, generation - random.choice([0, 0, 0, 0, 1, 2]))
    key = f"{chosen}.shared-{random.randrange(SHARED_KEYS)}"
    return keyed(kind, key, 1 if kind == "conflict" else 0, waits=random.random() < 0.6)


def _entity(random: Random, generation: int) -> str:
    """Some are asked for much more often than others."""
    return f"{generation}.{min(random.randrange(ENTITIES), random.randrange(ENTITIES))}"


def _pause(random: Random) -> float:
    """Of a turn, in seconds: most take no time, a few are in the way of a whole mailbox."""
    return random.choice([0.0] * 180 + [0.02] * 18 + [0.3, 1.0])
