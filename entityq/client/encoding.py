"""From a call to a request: id, key digest, deadline and envelope."""

import time
from collections.abc import Mapping

from entityq.call import Call
from entityq.client.send import Send
from entityq.envelope import EXPIRES, Envelope
from entityq.postgres.outbox import NewRequest
from entityq.primary_key import key_digest
from entityq.snowflake import Snowflakes, client_machine
from entityq.timing import expires_ms


class Encoder:
    """Of one client object; `client` is its id, and the name of its reply channel."""

    def __init__(self, namespace: str, client: int, ids: Snowflakes) -> None:
        self._namespace = namespace
        self._client = client
        self._ids = ids

    def request(self, call: Call, timeout: float | None = None) -> NewRequest:
        """A new request; somebody waits for its reply for `timeout` seconds (None: nobody says how long)."""
        return new_request(self._namespace, self._client, self._ids.new(), call, timeout)

    def renewed(self, send: Send) -> NewRequest:
        """The same request with another id, after a collision: another process has this machine number."""
        self._ids.machine = client_machine()
        return self.request(send.call, send.timeout)


def new_request(
    namespace: str, client: int, request_id: int, call: Call, timeout: float | None = None
) -> NewRequest:
    """`timeout` as for `Encoder.request`. Raises MalformedMessage and PayloadTooLarge."""
    key = call.primary_key
    name = call.message.name
    now = time.time()
    envelope = Envelope(
        request_id=request_id,
        address=call.address,
        message=name,
        payload=call.payload,
        persisted=call.message.persisted,
        client=client,
        content_type=call.content_type,
        primary_key=key,
        deadline_ms=None if timeout is None else int((now + timeout) * 1000),
        headers=_headers(call, now),
    )
    return NewRequest(
        request_id=request_id,
        address=call.address,
        message=name,
        key_digest=None if key is None else key_digest(namespace, call.address, name, key),
        payload_hash=call.payload_hash,
        envelope=envelope.encode(),
        due_at=call.eta,
        delay=call.delay,
    )


def _headers(call: Call, now: float) -> Mapping[str, str]:
    if call.expires is None:
        return call.headers
    return {**call.headers, EXPIRES: str(expires_ms(call.expires, now))}
