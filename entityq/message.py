"""A message that is ready to be sent: the ways of sending it, typed by the handler's signature."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Generic, ParamSpec, Self, TypeVar

from entityq.address import Address
from entityq.broadcast import EVERYONE, Broadcast
from entityq.call import Call, CallOptions, new_call
from entityq.context import sender_for
from entityq.definition import EntityDefinition, MessageDefinition
from entityq.errors import MalformedMessage
from entityq.ports import Home
from entityq.receipt import Receipt
from entityq.request import Request
from entityq.timing import read_delay, read_eta, read_expires

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

    @property
    def entity(self) -> EntityDefinition:
        return self._entity

    @property
    def definition(self) -> MessageDefinition:
        return self._message

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
        eta: datetime | None = None,
        delay: float | timedelta | None = None,
        expires: float | timedelta | datetime | None = None,
    ) -> Self:
        """The same message with these options; what is left out stays as it is.

        timeout: how long the caller waits, in seconds.
        primary_key: for messages that declare none.
        eta: when it is to run, with a time zone; in the past: now.
        delay: the same, counted from its acceptance, in seconds.
        expires: what has not started by then is answered with Interrupted; a time, or seconds from the sending.

        Raises MalformedMessage.
        """
        options = changed_options(
            self._options,
            timeout=timeout,
            primary_key=primary_key,
            headers=headers,
            eta=eta,
            delay=delay,
            expires=expires,
        )
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


class TypeMessage(Generic[P, R]):
    """A message as its class has it, `Account.read`. `handler` is the method itself, to call it directly."""

    def __init__(
        self,
        handler: Callable[..., Any],
        name: str,
        registered: Callable[[], tuple[EntityDefinition, Home]],
        options: CallOptions = _NO_OPTIONS,
    ) -> None:
        """`registered` raises TypeError for a class that belongs to no app."""
        self.handler = handler
        self.name = name
        self.__doc__ = handler.__doc__
        self._registered = registered
        self._options = options

    async def broadcast(self, *args: P.args, **kwargs: P.kwargs) -> Broadcast:
        """To every entity of the type that is in a runner's memory now; returns whom it reached.

        Waits until every live runner has answered, at the latest for the timeout of `options` or the message, by
        default as long as a send. Only for volatile messages; what handlers return or raise is not told. Raises
        MalformedMessage, PayloadTooLarge, SendTimeout when Redis does not take it, and PersistenceError when
        nobody can say which runners are alive.
        """
        home, call = self._new_call(args, kwargs)
        return await sender_for(home).broadcast(call)

    def broadcast_blocking(self, *args: P.args, **kwargs: P.kwargs) -> Broadcast:
        """The same from sync code."""
        home, call = self._new_call(args, kwargs)
        return sender_for(home).blocking().broadcast(call)

    def options(self, *, timeout: float | None = None, headers: Mapping[str, str] | None = None) -> Self:
        """The same message with these options; `timeout` is how long to wait for the runners, in seconds."""
        options = _changed(self._options, timeout=timeout, headers=headers)
        return type(self)(self.handler, self.name, self._registered, options)

    def at_home(self, home: Home) -> Self:
        """The same message, sent through `home`."""
        definition, _ = self._registered()
        return type(self)(self.handler, self.name, lambda: (definition, home), self._options)

    def _new_call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> tuple[Home, Call]:
        definition, home = self._registered()
        message = definition.messages[self.name]
        if message.persisted:
            raise MalformedMessage(
                f"{definition.type}.{message.name} is persisted: only a volatile message can be broadcast, because "
                "a stored request has one entity, which answers it",
                advice="Declare it with persisted=False, or send it to each entity.",
            )
        everyone = Address(definition.type, EVERYONE)
        call = new_call(
            definition,
            message,
            lambda _: everyone,
            args=args,
            kwargs=kwargs,
            options=self._options,
            serializer=home.serializer,
        )
        return home, call


def changed_options(
    options: CallOptions,
    *,
    timeout: float | None,
    primary_key: str | None,
    headers: Mapping[str, str] | None,
    eta: datetime | None,
    delay: float | timedelta | None,
    expires: float | timedelta | datetime | None,
) -> CallOptions:
    """What is None stays as it is. Raises MalformedMessage."""
    changed = _changed(options, timeout=timeout, primary_key=primary_key, headers=headers)
    return _timed(changed, eta, delay, expires)


def _timed(
    options: CallOptions,
    eta: datetime | None,
    delay: float | timedelta | None,
    expires: float | timedelta | datetime | None,
) -> CallOptions:
    """An eta takes the place of a delay from before, and a delay that of an eta."""
    if eta is not None and delay is not None:
        raise MalformedMessage("A request has an eta or a delay, not both")
    if eta is not None:
        options = replace(options, eta=read_eta(eta), delay=None)
    if delay is not None:
        options = replace(options, delay=read_delay(delay), eta=None)
    return options if expires is None else replace(options, expires=read_expires(expires))


def _changed(options: CallOptions, **given: Any) -> CallOptions:
    """What is None stays as it is."""
    timeout = given.get("timeout")
    if timeout is not None and not timeout > 0:
        raise MalformedMessage(f"timeout must be above 0 seconds, not {timeout}")
    return replace(options, **{name: value for name, value in given.items() if value is not None})
