"""From an entry or a row to the mailbox of its entity.

Everything that a runner receives comes through here: entries of the streams, rows of the outbox. Each is
decoded, checked by its shard's intake, admitted to a mailbox, or left where it is safe.
"""

import logging
import time
from collections.abc import Callable, Mapping

from entityq.address import Address
from entityq.codec import Limits
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.entry import decode_entry
from entityq.envelope import NOBODY, Envelope, UnknownFormat, decode_envelope
from entityq.errors import (
    EntityDefect,
    EntityNotAssigned,
    EntityQError,
    MailboxFull,
    MalformedMessage,
)
from entityq.postgres.backlog import Row
from entityq.redis.consumer import StreamEntry
from entityq.runner.activation import Activation
from entityq.runner.activations import Activations
from entityq.runner.answers import Answers
from entityq.runner.attempts import exhausted, exhausted_text
from entityq.runner.deferrals import Deferrals
from entityq.runner.intake import Arrival, Verdict
from entityq.runner.mailbox import Admission, admission
from entityq.runner.newer_code import leave_for_newer_code
from entityq.runner.owned_shard import OwnedShard
from entityq.runner.prefetch import Prefetch
from entityq.runner.request import Request
from entityq.runner.residents import Residents

log = logging.getLogger(__name__)


class Dispatcher:
    """Hands requests to activations, in order.

    Args:
        make_room: passivates the longest idle activation, if there is one; whether there is room now.
        shard_id_of: where an entity lives, None for a type that the cluster does not have.
    """

    def __init__(
        self,
        definitions: Mapping[str, EntityDefinition],
        residents: Residents,
        deferrals: Deferrals,
        prefetch: Prefetch,
        *,
        activations: Activations,
        answers: Answers,
        make_room: Callable[[], bool],
        shard_id_of: Callable[[Address], int | None],
        max_payload: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._definitions = definitions
        self._residents = residents
        self._deferrals = deferrals
        self._prefetch = prefetch
        self._activations = activations
        self._answers = answers
        self._make_room = make_room
        self._shard_id_of = shard_id_of
        # An envelope is its payload and its headers; the payload's own limit is checked when it is decoded.
        self._limits = Limits(max_bytes=max_payload + 65_536)
        self._clock = clock

    # ----- entries of the streams

    def entry(self, owned: OwnedShard, raw: StreamEntry) -> None:
        """One entry of a shard's stream, in the order of the stream."""
        if not raw.fields:
            # It was deleted while it was pending: answered, or trimmed when this runner had read it.
            self._answers.acknowledge(owned, [raw.entry_id])
            return
        try:
            entry = decode_entry(raw.fields)
            envelope = decode_envelope(entry.envelope, self._limits)
        except (EntityQError, UnknownFormat, ValueError) as error:
            # The outbox has what was accepted; what only the stream has was never a request of ours.
            log.warning("stream.entry_unreadable shard=%s entry=%r: %s", owned.shard, raw.entry_id, error)
            self._answers.acknowledge(owned, [raw.entry_id])
            owned.must_catch_up()
            return
        if self._shard_id_of(envelope.address) not in (None, owned.shard_id):
            self._misplaced(owned, Request(envelope, owned.shard_id, entry.seq, raw.entry_id))
            return
        if not entry.persisted:
            self._volatile(owned, Request(envelope, owned.shard_id, 0, raw.entry_id))
            return
        was_serving = not owned.intake.catching_up
        verdict = owned.intake.take(Arrival(raw.entry_id, entry, envelope))
        if was_serving and owned.intake.catching_up:
            owned.behind.set()
        if verdict is Verdict.DELIVER:
            self._deliver(owned, Request(envelope, owned.shard_id, entry.seq, raw.entry_id))
        elif verdict is Verdict.DROP:
            self._answers.acknowledge(owned, [raw.entry_id])

    def _misplaced(self, owned: OwnedShard, request: Request) -> None:
        """Published by somebody with the facts of before a reshard: a turn here would not see the state."""
        address = request.envelope.address
        log.info("stream.entry_misplaced shard=%s entity=%s", owned.shard, address)
        if not request.envelope.persisted:
            text = f"{address} lives in another shard since the number of shards was changed: try again"
            self._answers.refuse(request, EntityNotAssigned, text)
        elif request.entry_id is not None:
            self._answers.acknowledge(owned, [request.entry_id])

    def arrival(self, owned: OwnedShard, arrival: Arrival) -> None:
        """An entry that waited for the end of a pass."""
        self._deliver(owned, Request(arrival.envelope, owned.shard_id, arrival.entry.seq, arrival.entry_id))

    def _volatile(self, owned: OwnedShard, request: Request) -> None:
        envelope = request.envelope
        deadline = envelope.deadline_ms
        if deadline is not None and deadline < self._clock() * 1000:
            self._answers.acknowledge(owned, [request.entry_id] if request.entry_id else [])
        elif owned.intake.take_volatile(request.request_id):
            self._deliver(owned, request)
        elif request.entry_id is not None:
            # A repeat of what is in a mailbox: its sender did not hear that Redis had taken the first one.
            self._answers.acknowledge(owned, [request.entry_id])

    # ----- rows of the outbox

    def row(self, owned: OwnedShard, row: Row) -> bool:
        """A row that the intake let through. Returns whether it is admitted, or can stay where it is."""
        if row.cancelled:
            self._answers.cancelled(owned, Request(self._envelope_of(row), owned.shard_id, row.seq, None))
            return True
        try:
            envelope = decode_envelope(row.envelope, self._limits)
        except UnknownFormat as error:
            # A newer runner will know it, and what follows waits for it. The intake remembers the id, so that
            # no sweep brings it again.
            owned.blocked.add(row.address)
            log.warning("request.unknown_format shard=%s request=%s: %s", owned.shard, row.request_id, error)
            return True
        except EntityQError as error:
            log.error("request.unreadable shard=%s request=%s: %s", owned.shard, row.request_id, error)
            request = Request(_unreadable(row), owned.shard_id, row.seq, None)
            self._answers.without_turn(owned, request, MalformedMessage, error.what)
            return True
        request = _tried(row, envelope, owned.shard_id)
        if exhausted(row.attempts):
            text = exhausted_text(envelope, row.attempts)
            log.error("request.not_run_again shard=%s request=%s: %s", owned.shard, row.request_id, text)
            self._answers.without_turn(owned, request, EntityDefect, text)
            return True
        if row.wait > 0 and envelope.address not in owned.blocked:
            owned.intake.forget(row.request_id)
            self._deferrals.back_off(owned.shard_id, envelope.address, time.monotonic() + row.wait)
            return False
        return self._deliver(owned, request)

    def _envelope_of(self, row: Row) -> Envelope:
        """To be answered, a request need not be understood."""
        try:
            return decode_envelope(row.envelope, self._limits)
        except (EntityQError, UnknownFormat):
            return _unreadable(row)

    # ----- to the mailbox

    def _deliver(self, owned: OwnedShard, request: Request) -> bool:
        envelope = request.envelope
        definition = self._definitions.get(envelope.address.type)
        message = definition.messages.get(envelope.message) if definition is not None else None
        blocked = envelope.persisted and envelope.address in owned.blocked
        if definition is None or message is None or blocked:
            self._leave_for_newer_code(owned, request)
            return True
        activation = self._residents.get(owned.shard_id, envelope.address)
        match self._admission(owned, envelope, definition, message, activation):
            case Admission.ADMIT:
                self._admit(owned, request, definition, message, activation)
                return True
            case Admission.DEFER:
                self._defer(owned, request)
            case Admission.REFUSE:
                self._refuse(owned, request)
        return False

    def _admission(
        self,
        owned: OwnedShard,
        envelope: Envelope,
        definition: EntityDefinition,
        message: MessageDefinition,
        activation: Activation | None,
    ) -> Admission:
        deferred = (owned.shard_id, envelope.address) in self._deferrals and not owned.reading_deferred
        if message.concurrent and self._deferrals.in_backoff(owned.shard_id, envelope.address):
            deferred = False
        room = activation is not None or not self._residents.full
        if not room and not (deferred and envelope.persisted):
            room = self._make_room()
        return admission(
            persisted=envelope.persisted,
            deferred=deferred,
            resident=activation is not None,
            queued=activation.queued if activation is not None else 0,
            capacity=definition.mailbox_capacity,
            room_for_residents=room,
        )

    def _admit(
        self,
        owned: OwnedShard,
        request: Request,
        definition: EntityDefinition,
        message: MessageDefinition,
        activation: Activation | None,
    ) -> None:
        if activation is None:
            activation = self._activations.new(definition, request.envelope.address, owned)
        self._residents.busy(activation)
        self._prefetch.add()
        activation.deliver(request, message)

    def _defer(self, owned: OwnedShard, request: Request) -> None:
        owned.intake.forget(request.request_id)
        self._deferrals.defer(owned.shard_id, request.envelope.address)
        if request.entry_id is not None:
            self._answers.acknowledge(owned, [request.entry_id])

    def _refuse(self, owned: OwnedShard, request: Request) -> None:
        owned.intake.forget(request.request_id)
        address = request.envelope.address
        self._answers.refuse(request, MailboxFull, f"the mailbox of {address} is full: try again later")

    def _leave_for_newer_code(self, owned: OwnedShard, request: Request) -> None:
        envelope = request.envelope
        leave_for_newer_code(
            owned,
            request,
            f"this runner does not know {envelope.address.type}.{envelope.message}",
            event="request.unknown_message",
            answers=self._answers,
            deferrals=self._deferrals,
        )


def _unreadable(row: Row) -> Envelope:
    return Envelope(row.request_id, row.address, "unreadable", b"", True, NOBODY)


def _tried(row: Row, envelope: Envelope, shard_id: int) -> Request:
    """With what the outbox knows of its earlier attempts."""
    request = Request(envelope, shard_id, row.seq, None, lost=row.attempts, retries=row.retries)
    request.suspended = row.suspended
    if row.failing is not None:
        request.failing_since = time.monotonic() - row.failing
    return request
