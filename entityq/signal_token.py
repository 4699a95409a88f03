"""The token of a signal: what somebody needs, and all that is needed, to send one value to one waiting request."""

import binascii
import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from entityq.address import length_prefixed
from entityq.errors import MalformedMessage

MAX_NAME_BYTES = 128

_ID_BYTES = 8
_MAC_BYTES = 16
_MAX_TOKEN = 400


@dataclass(frozen=True, slots=True)
class SignalPlace:
    """What a token is for: the signal of this name, of this request."""

    request_id: int
    name: str


def check_signal_name(name: str) -> None:
    """Raises MalformedMessage unless the name has 1 to 128 bytes of printable text."""
    if not 1 <= len(length_prefixed(name)) - 4 <= MAX_NAME_BYTES or not name.isprintable():
        raise MalformedMessage(
            f"A signal's name has 1 to {MAX_NAME_BYTES} bytes of printable text, not {name!r}"
        )


def signal_token(key: bytes, place: SignalPlace) -> str:
    """Of a cluster with this key; it holds no secret but itself.

    Frozen: base64url without padding of the request id (8 bytes, big endian), the first 16 bytes of
    HMAC-SHA256(key, that id and the length-prefixed name), and the name. Raises MalformedMessage for its name.
    """
    check_signal_name(place.name)
    parts = place.request_id.to_bytes(_ID_BYTES), _mac(key, place), place.name.encode()
    return urlsafe_b64encode(b"".join(parts)).rstrip(b"=").decode()


def read_signal_token(key: bytes, token: str) -> SignalPlace:
    """Raises MalformedMessage for a token that no cluster with this key has made."""
    data = _decoded(token)
    try:
        place = SignalPlace(int.from_bytes(data[:_ID_BYTES]), data[_ID_BYTES + _MAC_BYTES :].decode())
        made = signal_token(key, place)
    except (UnicodeDecodeError, MalformedMessage):
        raise _refused() from None
    # The whole text: one token has one spelling.
    if not hmac.compare_digest(made.encode(), token.encode()):
        raise _refused()
    return place


def _decoded(token: str) -> bytes:
    if len(token) > _MAX_TOKEN:
        raise _refused()
    try:
        return urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (binascii.Error, UnicodeEncodeError):
        raise _refused() from None


def _mac(key: bytes, place: SignalPlace) -> bytes:
    scope = place.request_id.to_bytes(_ID_BYTES) + length_prefixed(place.name)
    return hmac.digest(key, scope, hashlib.sha256)[:_MAC_BYTES]


def _refused() -> MalformedMessage:
    return MalformedMessage(
        "This is no token of a signal of this cluster: nothing was written",
        advice="Pass the token on exactly as self.context.signal_token() gave it, to an app with the same namespace.",
    )
