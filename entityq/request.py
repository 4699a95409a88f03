"""A request that is ready and not sent yet: for batches, and for the caller's own transactions."""

from collections.abc import Iterable
from typing import Generic, TypeVar

from entityq.call import Call
from entityq.errors import MalformedMessage
from entityq.ports import Home

R_co = TypeVar("R_co", covariant=True)


class Request(Generic[R_co]):
    """Made by `account.deposit.request(...)`, checked and encoded. Sending it twice is two requests, unless it
    has a primary key."""

    __slots__ = ("call", "home")

    def __init__(self, call: Call, home: Home) -> None:
        self.call = call
        self.home = home

    def __repr__(self) -> str:
        return f"<Request {self.call.message.name} to {self.call.address}>"


def calls_of(home: Home, requests: Iterable[Request[object]]) -> list[Call]:
    """In their order. Raises MalformedMessage for a volatile message, and for a request of another app."""
    calls: list[Call] = []
    for request in requests:
        require_persisted(request.call)
        if request.home is not home:
            raise MalformedMessage(
                f"{request!r} is of another app, or of a test client",
                advice="A batch holds requests of the app, or test client, that sends it.",
            )
        calls.append(request.call)
    return calls


def require_persisted(call: Call) -> None:
    """Raises MalformedMessage for a volatile message."""
    if not call.message.persisted:
        raise MalformedMessage(
            f"{call.message.name} of {call.address.type} is volatile: it is in no transaction",
            advice="Send it alone, or make the message persisted.",
        )
