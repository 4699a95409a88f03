"""The control message of a broadcast."""

from typing import Any

import pytest

from entityq.redis.broadcasts import broadcast_message, read_broadcast
from entityq.redis.control import ControlMessage, decode_control


def test_the_format_is_frozen() -> None:
    message = broadcast_message(b"\x00\xffenvelope", {2**62: 7, 2: 8})
    encoded = message.encode()
    assert encoded == (
        b'{"kind":"broadcast","envelope":"AP9lbnZlbG9wZQ==","answers":{"4611686018427387904":7,"2":8}}'
    )
    assert decode_control(encoded) == message
    assert read_broadcast(message, 2) == (b"\x00\xffenvelope", 8)


def test_who_is_not_asked_does_not_answer() -> None:
    assert read_broadcast(broadcast_message(b"", {2: 8}), 3) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"envelope": "AP9l"},
        {"answers": {"2": 8}},
        {"envelope": 1, "answers": {"2": 8}},
        {"envelope": "AP9l", "answers": [2]},
        {"envelope": "AP9l", "answers": {"2": "8"}},
        {"envelope": "AP9l", "answers": {"2": True}},
        {"envelope": "!", "answers": {"2": 8}},
        {"envelope": "ä", "answers": {"2": 8}},
    ],
)
def test_what_is_no_broadcast_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        read_broadcast(ControlMessage("broadcast", fields), 2)
