"""The control message of a broadcast: it asks all runners, and tells each where to answer.

Frozen: the kind "broadcast", "envelope" in base64, "answers" an object of request ids by incarnation. A runner
answers as to a request with that id, on the reply channel of the envelope's client.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, cast

from entityq.redis.control import ControlMessage

KIND = "broadcast"


def broadcast_message(envelope: bytes, answers: Mapping[int, int]) -> ControlMessage:
    """`answers`: the request id of each runner's answer, by incarnation."""
    ids = {str(incarnation): request_id for incarnation, request_id in answers.items()}
    return ControlMessage(KIND, {"envelope": base64.b64encode(envelope).decode(), "answers": ids})


def read_broadcast(message: ControlMessage, incarnation: int) -> tuple[bytes, int] | None:
    """The envelope, and the request id of this runner's answer; None where nobody expects one.

    Raises ValueError: the fields come from outside and can be anything.
    """
    envelope, answers = message.fields.get("envelope"), message.fields.get("answers")
    if not isinstance(envelope, str) or not isinstance(answers, dict):
        raise ValueError("a broadcast has an envelope and answers")
    request_id = cast("dict[str, Any]", answers).get(str(incarnation))
    if request_id is None:
        return None
    if type(request_id) is not int:
        raise ValueError("a request id is a number")
    try:
        return base64.b64decode(envelope, validate=True), request_id
    except binascii.Error as error:
        raise ValueError(f"the envelope of a broadcast is not base64: {error}") from None
