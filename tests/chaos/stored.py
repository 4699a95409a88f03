"""What Postgres has in the end, and what it went through: read with SQL."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

from entityq import EntityQError
from entityq.codec import Limits
from entityq.envelope import Envelope, decode_envelope
from entityq.replies import result_of
from entityq.reply import decode_reply
from tests.chaos.entry import Entry
from tests.chaos.history import Value
from tests.chaos.ledger import Refused, app, plain
from tests.chaos.queries import QUERIES

_LIMITS = Limits()

# Type and id.
Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """`value` is its decoded reply, see ledger.plain; None: unanswered."""

    request_id: int
    shard_id: int
    place: Place
    message: str
    key: str | None
    value: Value | None


@dataclass(frozen=True, slots=True)
class StoredEntity:
    version: int
    epoch: int
    journal: tuple[Entry, ...] = ()
    chained: int = 0


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A runner has taken a shard."""

    tick: int
    shard_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Change:
    """A new version of an entity was committed."""

    tick: int
    shard_id: int
    place: Place
    version: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply was committed."""

    tick: int
    request_id: int
    shard_id: int
    epoch: int


@dataclass(slots=True)
class Stored:
    """Acquisitions, changes and answers are in the order of their ticks."""

    requests: dict[int, StoredRequest] = field(default_factory=dict[int, StoredRequest])
    entities: dict[Place, StoredEntity] = field(default_factory=dict[Place, StoredEntity])
    acquisitions: list[Acquisition] = field(default_factory=list[Acquisition])
    changes: list[Change] = field(default_factory=list[Change])
    answers: list[Answer] = field(default_factory=list[Answer])
    pending: int = 0


def read_stored(connection: psycopg.Connection[tuple[Any, ...]]) -> Stored:
    def rows(name: str) -> list[tuple[Any, ...]]:
        return connection.execute(QUERIES[name]).fetchall()

    stored = Stored(pending=int(rows("count_pending")[0][0]))
    for request_id, shard_id, _, type_, entity_id, message, _, reply, envelope in rows("read_requests"):
        place, decoded = (type_, entity_id), decode_envelope(envelope, _LIMITS)
        value = None if reply is None else _value(decoded, reply)
        key = decoded.primary_key
        stored.requests[request_id] = StoredRequest(request_id, shard_id, place, message, key, value)
    for _, type_, entity_id, version, epoch, state in rows("read_entities"):
        stored.entities[type_, entity_id] = _entity(type_, version, epoch, state)
    stored.acquisitions = [Acquisition(*row) for row in rows("read_acquisitions")]
    stored.changes = [Change(row[0], row[1], (row[2], row[3]), *row[4:]) for row in rows("read_changes")]
    stored.answers = [Answer(*row) for row in rows("read_answers")]
    return stored


def _entity(type_: str, version: int, epoch: int, state: bytes | None) -> StoredEntity:
    values: Mapping[str, Any] = dict(app.definitions[type_].state.load(state))
    journal = tuple(Entry.parse(line) for line in values["journal"])
    return StoredEntity(version, epoch, journal, values.get("chained", 0))


def _value(envelope: Envelope, reply: bytes) -> Value:
    message = app.definitions[envelope.address.type].messages[envelope.message]
    try:
        return plain(result_of(decode_reply(envelope.request_id, reply), message, _LIMITS))
    except Refused as refused:
        return plain(refused)
    except EntityQError as error:
        return {"error": type(error).__name__, "what": error.what}
