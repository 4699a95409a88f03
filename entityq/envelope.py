"""The envelope: a request on its way to its entity, in the outbox and in the stream alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, cast

from msgpack import packb

from entityq.address import Address
from entityq.codec import MAX_RECORD_MAP, Limits, unpack_record
from entityq.errors import MalformedMessage, PayloadTooLarge

# Frozen: version 1 is a msgpack array of 12: version, request id, entity type, entity id, message, payload,
# persisted, client, content type, primary key, deadline, headers. Every version is an array of at most 15
# that begins with its number (1 to 127): one of the future is told from damage by the first two bytes.
VERSION = 1
_START = b"\x9c\x01"

# The client of a request whose reply nobody waits for.
NOBODY = 0

# Frozen: the header of a request that is not to start any more at a time, in unix ms.
EXPIRES = "entityq-expires"

# What an envelope may have besides its payload: names, key and headers.
MAX_OVERHEAD = 64 * 1024
_WHAT = "The envelope"
_MAX_INT = (1 << 63) - 1


class UnknownFormat(ValueError):
    """Written by a newer entityq: to be left for a process that knows the version."""

    def __init__(self, what: str, version: int) -> None:
        super().__init__(f"{what} has the format version {version}, this process knows {VERSION}")
        self.version = version


@dataclass(frozen=True, slots=True)
class Envelope:
    """One request. `client` is the id of the sending client object, and so of its reply channel.

    `content_type` says how the payload was written: "msgpack" or "<serializer>[+<compression>]". After
    `deadline_ms` (unix ms) nobody waits for the reply. `headers`: traceparent, tracestate, baggage, the chain
    of asks, when it expires.
    """

    request_id: int
    address: Address
    message: str
    payload: bytes
    persisted: bool
    client: int
    content_type: str = "msgpack"
    primary_key: str | None = None
    deadline_ms: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def expired(self, now: float) -> bool:
        """Whether it is too late to start it; `now` is the unix time in seconds."""
        text = self.headers.get(EXPIRES, "")
        # Headers come from outside, and can be anything.
        return len(text) < 16 and text.isascii() and text.isdecimal() and int(text) <= now * 1000

    def encode(self) -> bytes:
        """The bytes for outbox and stream; how large the payload may be is not checked here.

        Raises MalformedMessage for text that is not valid Unicode and for more than 64 headers,
        PayloadTooLarge when names, key and headers take more than 64 KiB together.
        """
        if len(self.headers) > MAX_RECORD_MAP:
            raise MalformedMessage(f"A request has at most {MAX_RECORD_MAP} headers, not {len(self.headers)}")
        try:
            data = packb(
                (
                    VERSION,
                    self.request_id,
                    self.address.type,
                    self.address.id,
                    self.message,
                    self.payload,
                    self.persisted,
                    self.client,
                    self.content_type,
                    self.primary_key,
                    self.deadline_ms,
                    dict(self.headers),
                )
            )
        except (ValueError, TypeError, OverflowError) as error:
            raise MalformedMessage(f"{_WHAT} cannot be encoded: {error}") from None
        if len(data) - len(self.payload) > MAX_OVERHEAD:
            raise PayloadTooLarge(f"Primary key and headers take more than {MAX_OVERHEAD:,} bytes")
        return data


def decode_envelope(data: bytes, limits: Limits) -> Envelope:
    """Raises UnknownFormat for a newer version, PayloadTooLarge, and MalformedMessage for everything else."""
    if not data.startswith(_START):
        refuse(data, _WHAT)
    fields = unpack_record(data, limits.max_bytes + MAX_OVERHEAD, _WHAT)
    _, request_id, type_, id_, message, payload, persisted, client, content_type, *optional = fields
    key, deadline, headers = optional
    if not (
        type(payload) is bytes
        and type(persisted) is bool
        and _is_number(request_id)
        and _is_number(client)
        and (key is None or type(key) is str)
        and (deadline is None or _is_number(deadline))
        and type(headers) is dict
        and _is_texts(type_, id_, message, content_type, *cast("dict[str, str]", headers))
        and _is_texts(*cast("dict[str, str]", headers).values())
    ):
        raise MalformedMessage(f"{_WHAT} cannot be decoded: a field has another type")
    if len(payload) > limits.max_bytes:
        raise PayloadTooLarge(f"The payload has {len(payload):,} bytes, the limit is {limits.max_bytes:,}")
    return Envelope(
        request_id,
        Address(type_, id_),
        message,
        payload,
        persisted,
        client,
        content_type,
        key,
        deadline,
        cast("dict[str, str]", headers),
    )


def refuse(data: bytes, what: str) -> NoReturn:
    """The error of bytes that do not begin as version 1 does: of a newer version, or damaged."""
    if len(data) > 1 and data[0] & 0xF0 == 0x90 and VERSION < data[1] < 0x80:
        raise UnknownFormat(what, data[1])
    raise MalformedMessage(f"{what} cannot be decoded: these are not the bytes of one")


def _is_texts(*values: object) -> bool:
    return set(map(type, values)) <= {str}


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INT
