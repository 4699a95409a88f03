"""From a call to a request: id, key digest, deadline and envelope."""

import time

from entityq.call import Call
from entityq.client.send import Send
from entityq.envelope import Envelope
from entityq.postgres.outbox import NewRequest
from entityq.primary_key import key_digest
from entityq.snowflake import Snowflakes, client_machine


class Encoder:
    """Of one client object; `client` is its id, and the name of its reply channel."""

    def __init__(self, namespace: str, client: int, ids: Snowflakes) -> None:
        self._namespace = namespace
        self._client = client
        self._ids = ids

    def request(self, call: Call, timeout: float | None = None) -> NewRequest:
        """A new request; somebody waits for its reply for `timeout` seconds (None: nobody says how long)."""
        request_id = self._ids.new()
        key = call.primary_key
        return NewRequest(
            request_id=request_id,
            address=call.address,
            message=call.message.name,
            key_digest=None if key is None else self._digest(call, key),
            payload_hash=call.payload_hash,
            envelope=self._envelope(call, request_id, timeout),
        )

    def renewed(self, send: Send) -> NewRequest:
        """The same request with another id, after a collision: another process has this machine number."""
        self._ids.machine = client_machine()
        return self.request(send.call, send.timeout)

    def _digest(self, call: Call, key: str) -> bytes:
        return key_digest(self._namespace, call.address, call.message.name, key)

    def _envelope(self, call: Call, request_id: int, timeout: float | None) -> bytes:
        return Envelope(
            request_id=request_id,
            address=call.address,
            message=call.message.name,
            payload=call.payload,
            persisted=call.message.persisted,
            client=self._client,
            content_type=call.content_type,
            primary_key=call.primary_key,
            deadline_ms=None if timeout is None else int((time.time() + timeout) * 1000),
            headers=call.headers,
        ).encode()
