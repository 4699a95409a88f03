"""What users subclass and decorate."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from entityq.address import Address
from entityq.context import TurnContext, current_turn, sender_for
from entityq.definition import FORGET, EntityDefinition, Role, place
from entityq.limit import MaxRunning, RateLimit
from entityq.message import BoundMessage, TypeMessage
from entityq.ports import Home
from entityq.retention import Duration
from entityq.retry import RetryPolicy
from entityq.status import EntityStatus
from entityq.stream import BoundStream

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound="Entity")


class Entity:
    """Subclass it and decorate the subclass with `@app.entity`.

    Public annotated attributes are the durable state, saved after each turn that changed them; names that
    begin with `_` are kept for the life of the activation only. Methods decorated with `@message` can be
    called from everywhere through a handle: `Account.at("acct-1").deposit(...)`.
    """

    # Class attributes of the decorated class; the handles of a test client have a home of their own.
    __definition__: EntityDefinition
    __home__: Home
    __address__: Address
    __role__: Role

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f'{name} is an entity: do not construct it, address it with {name}.at("some id")')

    @classmethod
    def at(cls, entity_id: str) -> Self:
        """The handle of an entity, which need not exist yet. Raises MalformedMessage for a bad id."""
        _, home = _registered(cls)
        return new_handle(cls, entity_id, home)

    @property
    def id(self) -> str:
        return self.__address__.id

    @property
    def context(self) -> TurnContext:
        """The request that this turn processes. Raises RuntimeError outside of a turn."""
        turn = current_turn.get()
        if turn is None or self.__role__ is Role.HANDLE:
            raise RuntimeError(f"{self!r} has no context: it exists inside a turn, as self.context")
        return turn.context

    async def on_activate(self) -> None:
        """Called when the entity comes into memory, before its first turn; durable fields are loaded."""

    async def on_deactivate(self) -> None:
        """Called when the entity leaves memory, after its last turn; not after a crash."""

    async def status(self) -> EntityStatus:
        """What the entity does now, and when its state was saved last."""
        return await sender_for(self.__home__).status(self.__address__)

    async def forget(self) -> None:
        """Removes the entity's state, its requests, replies and primary keys; waits until it is done."""
        home, definition, address = self.__home__, self.__definition__, self.__address__
        await BoundMessage[[], None](definition, definition.messages[FORGET], home, lambda _: address)()

    def __repr__(self) -> str:
        return f"<{self.__address__} {self.__role__.value}>"

    def __setattr__(self, name: str, value: object) -> None:
        if not (self.__role__ is Role.ACTIVATION and name in self.__definition__.state.fields):
            self._require_assignable(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__definition__.state.fields:
            raise AttributeError(f"{name} is a durable field of {self!r}: it cannot be deleted")
        super().__delattr__(name)

    def _require_assignable(self, name: str) -> None:
        if name.startswith("_") or hasattr(inspect.getattr_static(type(self), name, None), "__set__"):
            return
        if name not in self.__definition__.state.fields:
            raise AttributeError(
                f"{type(self).__name__} has no durable field {name}: annotate it in the class, "
                "or begin its name with _ if it need not be saved"
            )
        if self.__role__ is Role.HANDLE:
            raise AttributeError(f"{self!r} is not the entity: only its own messages can change {name}")
        raise AttributeError(
            f"{self!r} cannot change {name}: only a persisted message that is not concurrent may"
        )


class Field:
    """Stands in the class for a durable field; an activation has the value in its `__dict__`, which wins."""

    def __init__(self, name: str, default: object) -> None:
        self.name = name
        self.default = default

    def __get__(self, instance: Entity | None, owner: type[Entity]) -> object:
        if instance is None:
            return self.default
        raise AttributeError(
            f"{instance!r} is a handle and does not hold the state: "
            f"read {self.name} through a message of {owner.__name__}"
        )


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """As given to `@message`; durations are in seconds, `primary_key` names a parameter."""

    primary_key: str | None = None
    persisted: bool = True
    concurrent: bool = False
    timeout: float | None = None
    time_limit: float | None = None
    name: str | None = None
    keep: Duration | None = None
    keep_keys: Duration | None = None
    retry: RetryPolicy | None = None
    uninterruptible: bool = False
    transactional: bool = False
    rate_limit: RateLimit | str | None = None
    max_running: MaxRunning | int | None = None


class Declared:
    """A method that can be called from outside; `handler` is the method itself, to call it directly."""

    def __init__(self, handler: Callable[..., Any], options: MessageOptions) -> None:
        """Raises TypeError when it is not a method."""
        if not inspect.isfunction(handler) or [*inspect.signature(handler).parameters][:1] != ["self"]:
            raise TypeError(f"@message is for methods of an Entity, with self: {handler!r} is not one")
        self.handler = handler
        self.options = options
        self.name = options.name or handler.__name__
        self.__doc__ = handler.__doc__


class Message(Declared, Generic[P, R]):
    """One with one reply."""

    @overload
    def __get__(self, instance: None, owner: type[Entity]) -> TypeMessage[P, R]: ...

    @overload
    def __get__(self, instance: Entity, owner: type[Entity]) -> BoundMessage[P, R]: ...

    def __get__(self, instance: Entity | None, owner: type[Entity]) -> TypeMessage[P, R] | BoundMessage[P, R]:
        if instance is None:
            return TypeMessage(self.handler, self.name, lambda: _registered(owner))
        definition = instance.__definition__
        address = instance.__address__
        return BoundMessage(definition, definition.messages[self.name], instance.__home__, lambda _: address)


class StreamMessage(Declared, Generic[P, R]):
    """One whose reply is a stream of values."""

    @overload
    def __get__(self, instance: None, owner: type[Entity]) -> Self: ...

    @overload
    def __get__(self, instance: Entity, owner: type[Entity]) -> BoundStream[P, R]: ...

    def __get__(self, instance: Entity | None, owner: type[Entity]) -> Self | BoundStream[P, R]:
        if instance is None:
            return self
        definition = instance.__definition__
        message = definition.messages[self.name]
        return BoundStream(definition, message, instance.__home__, instance.__address__)


class MessageDecorator:
    """What `@message(...)` with arguments returns."""

    def __init__(self, options: MessageOptions) -> None:
        self._options = options

    # For mypy any handler fits the last overload, too; the first one that fits counts.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, handler: Callable[Concatenate[E, P], AsyncIterator[R]], /
    ) -> StreamMessage[P, R]: ...

    @overload
    def __call__(self, handler: Callable[Concatenate[E, P], Coroutine[Any, Any, R]], /) -> Message[P, R]: ...

    @overload
    def __call__(self, handler: Callable[Concatenate[E, P], R], /) -> Message[P, R]: ...

    def __call__(self, handler: Callable[..., Any], /) -> Message[..., Any] | StreamMessage[..., Any]:
        return _declared(handler, self._options)


# For mypy any handler fits the third overload, too; the first one that fits counts.
@overload
def message(  # type: ignore[overload-overlap]
    handler: Callable[Concatenate[E, P], AsyncIterator[R]], /
) -> StreamMessage[P, R]: ...


@overload
def message(handler: Callable[Concatenate[E, P], Coroutine[Any, Any, R]], /) -> Message[P, R]: ...


@overload
def message(handler: Callable[Concatenate[E, P], R], /) -> Message[P, R]: ...


@overload
def message(
    *,
    primary_key: str | None = None,
    persisted: bool = True,
    concurrent: bool = False,
    timeout: float | None = None,
    time_limit: float | None = None,
    name: str | None = None,
    keep: Duration | None = None,
    keep_keys: Duration | None = None,
    retry: RetryPolicy | None = None,
    uninterruptible: bool = False,
    transactional: bool = False,
    rate_limit: RateLimit | str | None = None,
    max_running: MaxRunning | int | None = None,
) -> MessageDecorator: ...


def message(
    handler: Callable[..., Any] | None = None,
    /,
    *,
    primary_key: str | None = None,
    persisted: bool = True,
    concurrent: bool = False,
    timeout: float | None = None,
    time_limit: float | None = None,
    name: str | None = None,
    keep: Duration | None = None,
    keep_keys: Duration | None = None,
    retry: RetryPolicy | None = None,
    uninterruptible: bool = False,
    transactional: bool = False,
    rate_limit: RateLimit | str | None = None,
    max_running: MaxRunning | int | None = None,
) -> Message[..., Any] | StreamMessage[..., Any] | MessageDecorator:
    """Makes a method of an entity a message. An `async def` runs in the event loop, a `def` in a thread. One that
    yields streams its values, see `entityq.stream`.

    primary_key: the parameter that makes a request known: a repeat gets the first reply.
    persisted: False sends it through Redis only, for reads and hints; it may be lost, and changes no state.
    concurrent: it runs beside other turns, on a read-only copy of the last committed state.
    timeout: how long callers wait for the reply, in seconds; by default what the settings say.
    time_limit: how long one attempt may run, in seconds; one that takes longer is cancelled, and is a defect.
    name: how it is called on the wire, by default the method's name.
    keep: how long its replies are kept, in seconds or as a timedelta; by default what the settings say.
    keep_keys: how long its primary keys are kept, also from the reply on: a repeat gets ReplyExpired then.
    retry: how often, and when, it runs again after a defect; by default what the entity type says.
    uninterruptible: a cancel that comes while it runs lets it run to its end, and its reply stands.
    transactional: each turn has a transaction of Postgres, and `self.context.connection` for SQL that commits with it.
    rate_limit: how many of its turns may start in a time, "100/m" (on each runner) or a RateLimit; the others wait.
    max_running: how many of its turns may run at once, a number (on each runner) or a MaxRunning.
    """
    options = MessageOptions(
        primary_key,
        persisted,
        concurrent,
        timeout,
        time_limit,
        name,
        keep=keep,
        keep_keys=keep_keys,
        retry=retry,
        uninterruptible=uninterruptible,
        transactional=transactional,
        rate_limit=rate_limit,
        max_running=max_running,
    )
    return MessageDecorator(options) if handler is None else _declared(handler, options)


def _declared(
    handler: Callable[..., Any], options: MessageOptions
) -> Message[..., Any] | StreamMessage[..., Any]:
    return (StreamMessage if inspect.isasyncgenfunction(handler) else Message)(handler, options)


def _registered(cls: type[Entity]) -> tuple[EntityDefinition, Home]:
    if getattr(cls, "__definition__", None) is None or cls.__definition__.cls is not cls:
        raise TypeError(f"{cls.__name__} belongs to no app: decorate it with @app.entity")
    return cls.__definition__, cls.__home__


def new_handle(cls: type[E], entity_id: str, home: Home) -> E:
    """A handle that sends through `home`. Raises MalformedMessage for a bad id."""
    handle = object.__new__(cls)
    place(handle, Address(cls.__definition__.type, entity_id), Role.HANDLE)
    vars(handle)["__home__"] = home
    return handle
