"""The value of a signal: bytes that say by themselves what they are, since nobody knows who will wait for it."""

from typing import Any

from entityq.codec import Limits
from entityq.schema import ValueSchema

# It was bounded when it was written, and limits may have been lowered since.
_STORED = Limits(max_bytes=16 * 1024**2, max_depth=512, max_containers=16 * 1024**2)

_ANY = ValueSchema(Any, "the value of a signal")


def encode_signal(value: object, limits: Limits) -> bytes:
    """As replies are encoded. Raises MalformedMessage for what cannot be, PayloadTooLarge."""
    return _ANY.encode(value, limits)


def signal_schema(annotation: object, name: str) -> ValueSchema:
    """Of what a handler waits for. Raises TypeError for an annotation that pydantic cannot check."""
    return ValueSchema(annotation, f"the value of the signal {name!r}")


def decode_signal(data: bytes, schema: ValueSchema) -> Any:
    """Checked and converted. Raises MalformedMessage when it does not fit."""
    return schema.decode(data, _STORED)
