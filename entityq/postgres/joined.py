"""Requests as statements that any connection to the same database can run, in a transaction of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entityq.address import Address, entity_hash, signed64
from entityq.postgres.channels import timers_channel
from entityq.postgres.outbox import Known, NewRequest, unpublished_channel
from entityq.postgres.queries import load

_SQL = load("joined.sql")

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Statement:
    """`sql` has its parameters as `%(name)s`; they are texts, numbers, and lists of these and of bytes."""

    sql: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of one request of the insert. `group` None: the cluster does not have its type."""

    stored: bool
    group: str | None
    open: bool
    room: bool
    isolation: str


class Joined:
    """The statements of one cluster."""

    def __init__(self, schema: str, namespace: str, max_pending: int) -> None:
        quoted = f'"{schema}"'
        self._sql = {name: sql.decode().replace("{schema}", quoted) for name, sql in _SQL.items()}
        self._namespace = namespace
        self._max_pending = max_pending

    def insert(self, requests: Sequence[NewRequest]) -> Statement:
        """Its rows are for `placed`."""
        return self._statement(
            "insert_joined",
            namespace=self._namespace,
            channel=unpublished_channel(self._namespace),
            max_pending=self._max_pending,
            request_ids=[request.request_id for request in requests],
            types=[request.address.type for request in requests],
            entity_ids=[request.address.id for request in requests],
            entity_hashes=[signed64(entity_hash(request.address.id)) for request in requests],
            messages=[request.message for request in requests],
            key_digests=[request.key_digest for request in requests],
            payload_hashes=[request.payload_hash for request in requests],
            envelopes=[request.envelope for request in requests],
            due_ats=[None if request.due_at is None else request.due_at.isoformat() for request in requests],
            delays=[request.delay for request in requests],
            timers_channel=timers_channel(self._namespace),
        )

    def read_known(self, requests: Sequence[NewRequest]) -> Statement:
        """Its rows are for `known`."""
        return self._statement(
            "read_known",
            request_ids=[request.request_id for request in requests],
            key_digests=[request.key_digest for request in requests if request.key_digest is not None],
        )

    def hold_groups(self, requests: Sequence[NewRequest]) -> Statement:
        """For a transaction that is not READ COMMITTED."""
        types = sorted({request.address.type for request in requests})
        return self._statement("hold_groups", namespace=self._namespace, types=types)

    def _statement(self, name: str, **parameters: Any) -> Statement:
        return Statement(self._sql[name], parameters)


def placed(rows: Rows) -> dict[int, Placed]:
    """By request id."""
    return {row[0]: Placed(row[1], row[2], bool(row[3]), bool(row[4]), row[5]) for row in rows}


def known(rows: Rows) -> list[Known]:
    """Drivers may give bytes as memoryviews."""
    found: list[Known] = []
    for request_id, shard_id, seq, type_, entity_id, message, digest, payload_hash, reply in rows:
        address = Address(type_, entity_id)
        hashed, expired = bytes(payload_hash), _bytes(reply)
        found.append(Known(request_id, shard_id, seq, address, message, _bytes(digest), hashed, expired))
    return found


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)
