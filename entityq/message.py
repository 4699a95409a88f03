"""A message that is ready to be sent: the ways of sending it, typed by the handler's signature."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, ParamSpec, Self, TypeVar

from entityq.address import Address
from entityq.call import Call, CallOptions, new_call
from entityq.context import sender_for
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.errors import MalformedMessage
from entityq.ports import Home
from entityq.receipt import Receipt
from entityq.request import Request

P = ParamSpec("P")
R = TypeVar("R")

_NO_OPTIONS = CallOptions()


class BoundMessage(Generic[P, R]):
    """A message of one entity. Every way of sending raises MalformedMessage or PayloadTooLarge at once."""

    __slots__ = ("_entity", "_home", "_locate", "_message", "_options")

    def __init__(
        self,
        entity: EntityDefinition,
        message: MessageDefinition,
        home: Home,
        locate: Callable[[str | None], Address],
        options: CallOptions = _NO_OPTIONS,
    ) -> None:
        """`locate` gives the address, by the primary key when a task has no other."""
        self._entity = entity
        self._message = message
        self._home = home
        self._locate = locate
        self._options = options

    async def ask(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Waits for the reply. Raises the entity's Failure, or an EntityQError."""
        reply: R = await sender_for(self._home).ask(self._new_call(args, kwargs))
        return reply

    __call__ = ask

    async def send(self, *args: P.args, **kwargs: P.kwargs) -> Receipt[R]:
        """Returns when the request is accepted; `await` the receipt for the reply."""
        return await sender_for(self._home).send(self._new_call(args, kwargs))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Asks, from sync code."""
        reply: R = sender_for(self._home).blocking().ask(self._new_call(args, kwargs))
        return reply

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Receipt[R]:
        """Sends, from sync code."""
        return sender_for(self._home).blocking().send(self._new_call(args, kwargs))

    def request(self, *args: P.args, **kwargs: P.kwargs) -> Request[R]:
        """Not sent yet: for `app.send_many`, and for a transaction of the caller's own (entityq.integrations)."""
        return Request(self._new_call(args, kwargs), self._home)

    def options(
        self,
        *,
        timeout: float | None = None,
        primary_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """The same message with these options; what is left out stays as it is.

        `timeout` is how long the caller waits, in seconds; `primary_key` is for messages that declare none.
        """
        if timeout is not None and not timeout > 0:
            raise MalformedMessage(f"timeout must be above 0 seconds, not {timeout}")
        given: dict[str, Any] = {"timeout": timeout, "primary_key": primary_key, "headers": headers}
        changed = {name: value for name, value in given.items() if value is not None}
        options = replace(self._options, **changed)
        return type(self)(self._entity, self._message, self._home, self._locate, options)

    def _new_call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call:
        return new_call(
            self._entity,
            self._message,
            self._locate,
            args=args,
            kwargs=kwargs,
            options=self._options,
            serializer=self._home.serializer,
        )
