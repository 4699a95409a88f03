"""One call, checked and encoded: what a Sender accepts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from uuid import UUID

from entityq.address import Address
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.errors import MalformedMessage
from entityq.serializer import Serializer


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What `.options()` set for one call; `timeout` is in seconds, the others as in Call."""

    timeout: float | None = None
    primary_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    eta: datetime | None = None
    delay: float | None = None
    expires: float | datetime | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """`timeout` is in seconds, None stands for the sender's default.

    It is to run at `eta`, or `delay` seconds after it was accepted (at most one of them), and not to start any more
    at `expires`: a time, or seconds after the sending.
    """

    entity: EntityDefinition
    message: MessageDefinition
    address: Address
    payload: bytes
    payload_hash: bytes
    primary_key: str | None = None
    timeout: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    content_type: str = "msgpack"
    eta: datetime | None = None
    delay: float | None = None
    expires: float | datetime | None = None


def new_call(
    entity: EntityDefinition,
    message: MessageDefinition,
    locate: Callable[[str | None], Address],
    *,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    options: CallOptions,
    serializer: Serializer,
) -> Call:
    """`locate` gives the address, by the primary key if it has no other (see `task_address`).

    Raises MalformedMessage when arguments or options do not fit the message, PayloadTooLarge.
    """
    arguments = message.payload.bind(args, kwargs)
    plain = message.payload.plain(arguments)
    key = _primary_key(entity, message, arguments, options)
    if not message.persisted and (options.eta is not None or options.delay is not None):
        raise MalformedMessage(
            f"{entity.type}.{message.name} is volatile: only a persisted message can wait for an eta or a delay"
        )
    return Call(
        entity=entity,
        message=message,
        address=locate(key),
        payload=serializer.encode(plain, message.payload.what),
        payload_hash=message.payload.hash(plain),
        primary_key=key,
        timeout=message.timeout if options.timeout is None else options.timeout,
        headers=options.headers,
        content_type=serializer.content_type,
        eta=options.eta,
        delay=options.delay,
        expires=options.expires,
    )


def task_address(task: str, primary_key: str | None, new_id: Callable[[], int]) -> Address:
    """A task has no entity, its id only spreads the load; but calls of one primary key must meet at one id.

    The id of a key is a frozen format: the hexadecimal BLAKE2b-128 of its UTF-8 text.
    """
    if primary_key is None:
        return Address(task, str(new_id()))
    return Address(task, blake2b(primary_key.encode(), digest_size=16).hexdigest())


def _primary_key(
    entity: EntityDefinition,
    message: MessageDefinition,
    arguments: Mapping[str, object],
    options: CallOptions,
) -> str | None:
    if message.primary_key is None and options.primary_key is None:
        return None
    what = f"{entity.type}.{message.name}"
    if message.primary_key is None:
        return _required_key(what, message, options.primary_key)
    if options.primary_key is not None:
        raise MalformedMessage(f"{what} takes its primary key from the parameter {message.primary_key}")
    return _required_key(what, message, arguments[message.primary_key])


def _required_key(what: str, message: MessageDefinition, value: object) -> str:
    if not message.persisted:
        raise MalformedMessage(f"{what} is volatile: only a persisted message can have a primary key")
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        kind = type(value).__name__
        raise MalformedMessage(f"the primary key of {what} must be text, an int or a UUID, not {kind}")
    key = str(value)
    if not key:
        raise MalformedMessage(f"the primary key of {what} is empty: all such calls would be one request")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise MalformedMessage(f"the primary key of {what} is not valid Unicode: {error.reason}") from error
    return key
