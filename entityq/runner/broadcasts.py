"""Broadcasts: delivered to the activations that this runner has of the type, and answered with their count."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from entityq.broadcast import Reached
from entityq.codec import Limits
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.envelope import NOBODY, Envelope, UnknownFormat, decode_envelope
from entityq.errors import EntityQError
from entityq.redis.broadcasts import KIND, read_broadcast
from entityq.redis.control import ControlChannel, ControlMessage
from entityq.runner.activation import Activation
from entityq.runner.mailbox import Admission, admission
from entityq.runner.prefetch import Prefetch
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.runner.shard_table import ShardTable

log = logging.getLogger(__name__)

# Bytes of envelopes that wait to be delivered; one alone may be larger.
MAX_WAITING = 16 * 1024**2
# Activations that get it without a pause for what else runs on the loop.
AT_ONCE = 100


class Broadcasts:
    """Of one incarnation.

    Args:
        announce: tells a client (by its id) the encoded reply to a request.
    """

    def __init__(
        self,
        me: int,
        control: ControlChannel,
        definitions: Mapping[str, EntityDefinition],
        *,
        residents: Residents,
        shards: ShardTable,
        prefetch: Prefetch,
        announce: Callable[[int, int, bytes], None],
        max_payload: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._me = me
        self._control = control
        self._definitions = definitions
        self._residents = residents
        self._shards = shards
        self._prefetch = prefetch
        self._announce = announce
        self._limits = Limits(max_bytes=max_payload + 65_536)
        self._clock = clock
        self._waiting: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        self._waiting_bytes = 0

    async def run(self) -> None:
        with self._control.listening(self.hear):
            while True:
                encoded, answer_id = await self._waiting.get()
                self._waiting_bytes -= len(encoded)
                await self._take(encoded, answer_id)

    def hear(self, message: ControlMessage) -> None:
        """Called by the control channel; `run` does the rest."""
        if message.kind != KIND:
            return
        try:
            read = read_broadcast(message, self._me)
        except ValueError as error:
            log.warning("broadcast.unreadable: %s", error)
            return
        if read is None:
            return
        size = len(read[0])
        if self._waiting_bytes and self._waiting_bytes + size > MAX_WAITING:
            log.warning("broadcast.dropped: too many at once; its sender counts this runner as silent")
            return
        self._waiting_bytes += size
        self._waiting.put_nowait(read)

    async def _take(self, encoded: bytes, answer_id: int) -> None:
        try:
            envelope = decode_envelope(encoded, self._limits)
        except (EntityQError, UnknownFormat) as error:
            log.warning("broadcast.unreadable: %s", error)
            return
        if envelope.deadline_ms is not None and envelope.deadline_ms < self._clock() * 1000:
            return  # Its sender has already counted this runner as silent.
        reached = await self._deliver(envelope)
        self._announce(envelope.client, answer_id, reached.reply(answer_id).encode())

    async def _deliver(self, envelope: Envelope) -> Reached:
        reached = refused = 0
        definition = self._definitions.get(envelope.address.type)
        message = definition.messages.get(envelope.message) if definition is not None else None
        for place, activation in enumerate(self._residents):
            if place % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            if activation.definition is not definition or not self._is_live(activation):
                continue
            if message is not None and self._admits(activation):
                self._admit(activation, envelope, message)
                reached += 1
            else:
                refused += 1
        return Reached(reached, refused)

    def _is_live(self, activation: Activation) -> bool:
        """Neither on its way out of memory, nor to another runner."""
        place = (activation.tenure.shard_id, activation.address)
        return (
            self._residents.get(*place) is activation
            and not activation.ending
            and self._shards.under(activation.tenure) is not None
        )

    def _admits(self, activation: Activation) -> bool:
        admitted = admission(
            persisted=False,
            deferred=False,
            resident=True,
            queued=activation.queued,
            capacity=activation.definition.mailbox_capacity,
            room_for_residents=True,
        )
        return admitted is Admission.ADMIT

    def _admit(self, activation: Activation, envelope: Envelope, message: MessageDefinition) -> None:
        # The deadline was that of the broadcast; for the handlers' replies nobody waits.
        own = replace(envelope, address=activation.address, client=NOBODY, deadline_ms=None)
        self._residents.busy(activation)
        self._prefetch.add()
        activation.deliver(Request(own, activation.tenure.shard_id, 0, None), message)
