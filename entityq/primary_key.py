"""The digest under which the outbox knows a primary key."""

import hashlib

from entityq.address import Address, length_prefixed


def key_digest(namespace: str, address: Address, message: str, key: str) -> bytes:
    """16 bytes. Frozen: BLAKE2b-128 over the length-prefixed parts: no two scopes or keys share an input."""
    scope_and_key = length_prefixed(namespace, address.type, address.id, message, key)
    return hashlib.blake2b(scope_and_key, digest_size=16).digest()
