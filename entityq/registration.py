"""From a decorated class or function to its definition; what cannot work is refused with a TypeError."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any

from entityq.definition import FORGET, EntityDefinition, HeadOfLine, MessageDefinition
from entityq.entity import Declared, Entity, Field, MessageOptions
from entityq.limit import MaxRunning, RateLimit, read_limit
from entityq.retention import Duration, Retention, read_retention
from entityq.retry import HANDLER_RETRY, RetryPolicy
from entityq.schema import PayloadSchema, StateSchema, ValueSchema, public_annotations
from entityq.signature import read_signature
from entityq.upcast import Upcaster, chain

TASK_MESSAGE = "run"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_RESERVED = frozenset(name for name in vars(Entity) if not name.startswith("_"))
_HOOKS = frozenset({"on_activate", "on_deactivate"})


@dataclass(frozen=True, slots=True)
class EntityOptions:
    """As given to `@app.entity`; `max_idle` is in seconds."""

    type: str | None = None
    shard_group: str = "default"
    mailbox_capacity: int = 100
    max_idle: float = 300.0
    concurrency: int = 1
    state_version: int = 1
    retry: RetryPolicy = HANDLER_RETRY
    head_of_line: str = HeadOfLine.BLOCK.value
    rate_limit: RateLimit | str | None = None
    max_running: MaxRunning | int | None = None


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """As given to `@app.task`; durations are in seconds, `primary_key` names a parameter."""

    name: str | None = None
    shard_group: str = "default"
    primary_key: str | None = None
    persisted: bool = True
    timeout: float | None = None
    time_limit: float | None = None
    keep: Duration | None = None
    keep_keys: Duration | None = None
    retry: RetryPolicy = HANDLER_RETRY
    uninterruptible: bool = False
    rate_limit: RateLimit | str | None = None
    max_running: MaxRunning | int | None = None


class TaskActivation(Entity):
    """What a task runs on: it has no state and no messages of its own."""


def define_entity(cls: type[object], options: EntityOptions) -> EntityDefinition:
    """Also replaces the class's durable attributes by Fields. Raises TypeError."""
    if not (inspect.isclass(cls) and issubclass(cls, Entity)):
        raise TypeError(f"@app.entity is for subclasses of entityq.Entity: {cls!r} is not one")
    if "__definition__" in vars(cls):
        raise TypeError(f"{cls.__name__} is already an entity type, {cls.__definition__.type}")
    type_name = _require_name(cls.__name__ if options.type is None else options.type, "an entity type")
    _require_limits(type_name, options)
    attributes = _attributes(cls)
    _require_own_names(cls, attributes)
    state = _state_schema(cls, attributes, options.state_version)
    definition = EntityDefinition(
        type=type_name,
        cls=cls,
        state=state,
        messages=_messages(type_name, attributes),
        shard_group=_require_group(options.shard_group),
        mailbox_capacity=options.mailbox_capacity,
        max_idle=options.max_idle,
        concurrency=options.concurrency,
        retry=options.retry,
        head_of_line=_head_of_line(type_name, options.head_of_line),
        limit=read_limit(type_name, options.rate_limit, options.max_running),
    )
    for name in state.fields:
        setattr(cls, name, Field(name, state.default(name)))
    return definition


def define_task(function: Callable[..., Any], options: TaskOptions) -> EntityDefinition:
    """A stateless entity type with the one message "run". Raises TypeError."""
    if not inspect.isfunction(function):
        raise TypeError(f"@app.task is for functions: {function!r} is not one")
    name = _require_name(function.__name__ if options.name is None else options.name, "a task")
    run = MessageOptions(
        options.primary_key,
        options.persisted,
        timeout=options.timeout,
        time_limit=options.time_limit,
        keep=options.keep,
        keep_keys=options.keep_keys,
        uninterruptible=options.uninterruptible,
        rate_limit=options.rate_limit,
        max_running=options.max_running,
    )
    message = _message_definition(name, TASK_MESSAGE, function, run, method=False)
    return EntityDefinition(
        type=name,
        cls=TaskActivation,
        state=StateSchema({}, {}, name),
        messages=MappingProxyType({TASK_MESSAGE: message, FORGET: _forget_message(name)}),
        shard_group=_require_group(options.shard_group),
        stateless=True,
        retry=options.retry,
    )


def _attributes(cls: type[Entity]) -> dict[str, object]:
    """What users wrote in the class and its bases, in order; an override stands for what it overrides."""
    classes = [base for base in cls.__mro__ if base not in Entity.__mro__]
    names = dict.fromkeys(name for base in reversed(classes) for name in vars(base))
    return {name: inspect.getattr_static(cls, name) for name in names}


def _require_own_names(cls: type[Entity], attributes: Mapping[str, object]) -> None:
    if "__init__" in attributes:
        raise TypeError(f"{cls.__name__}.__init__ would never be called: initialise in on_activate")
    for name in sorted(_HOOKS & attributes.keys()):
        if not inspect.iscoroutinefunction(attributes[name]):
            raise TypeError(f"{cls.__name__}.{name} must be an async def, without @message")
    taken = (attributes.keys() | public_annotations(cls).keys()) & _RESERVED - _HOOKS
    if taken:
        raise TypeError(f"{cls.__name__}.{min(taken)}: the name belongs to Entity, choose another one")


def _state_schema(cls: type[Entity], attributes: Mapping[str, object], version: int) -> StateSchema:
    annotations = public_annotations(cls)
    defaults = {name: _default(cls, name, attributes) for name in annotations}
    upcasters = [value for value in attributes.values() if isinstance(value, Upcaster)]
    return StateSchema(annotations, defaults, cls.__name__, chain(upcasters, version, cls.__name__))


def _default(cls: type[Entity], name: str, attributes: Mapping[str, object]) -> object:
    what = f"{cls.__name__}.{name}"
    if name not in attributes:
        raise TypeError(f"{what} has no default: addressing an entity brings it into being, so give it one")
    default = attributes[name]
    if isinstance(default, Field):  # of a base class that is an entity type too
        return default.default
    if inspect.isroutine(default) or hasattr(default, "__get__"):
        raise TypeError(f"{what} is annotated as a durable field, but a method or descriptor has its name")
    return default


def _messages(type_name: str, attributes: Mapping[str, object]) -> Mapping[str, MessageDefinition]:
    messages: dict[str, MessageDefinition] = {FORGET: _forget_message(type_name)}
    for attribute, message in _declared_messages(attributes):
        if message.name.startswith("$"):
            raise TypeError(f"{type_name}.{attribute}: names that begin with $ are for system messages")
        _require_name(message.name, f"a message of {type_name}")
        if message.name in messages:
            raise TypeError(f"{type_name} has two messages of the name {message.name}")
        messages[message.name] = _message_definition(
            type_name, message.name, message.handler, message.options, method=True
        )
    return MappingProxyType(messages)


def _declared_messages(attributes: Mapping[str, object]) -> Iterator[tuple[str, Declared]]:
    for attribute, value in attributes.items():
        if isinstance(value, Declared):
            yield attribute, value


def _message_definition(
    type_name: str, name: str, handler: Callable[..., Any], options: MessageOptions, *, method: bool
) -> MessageDefinition:
    what = f"{type_name}.{name}"
    signature = read_signature(handler, what, method=method)
    if signature.streams:
        _require_streamable(what, options, method=method)
    _require_primary_key(what, options, signature.parameters, signature.defaults)
    for word, seconds in (("timeout", options.timeout), ("time_limit", options.time_limit)):
        if seconds is not None and not seconds > 0:
            raise TypeError(f"{what}: {word} must be above 0 seconds, not {seconds}")
    return MessageDefinition(
        name=name,
        handler=handler if method else _without_activation(handler, is_async=signature.is_async),
        is_async=signature.is_async,
        payload=PayloadSchema(signature, what),
        reply=ValueSchema(int if signature.streams else signature.result, f"reply of {what}"),
        persisted=options.persisted,
        concurrent=options.concurrent,
        timeout=options.timeout,
        time_limit=options.time_limit,
        primary_key=options.primary_key,
        retention=_retention(what, options),
        retry=_retry(what, options),
        uninterruptible=_uninterruptible(what, options),
        transactional=_transactional(what, options),
        limit=read_limit(what, options.rate_limit, options.max_running),
        chunk=ValueSchema(signature.result, f"chunk of {what}") if signature.streams else None,
    )


def _require_streamable(what: str, options: MessageOptions, *, method: bool) -> None:
    if not method:
        raise TypeError(
            f"{what} yields values: a task has one reply, write a message of an entity that streams"
        )
    if not options.persisted:
        raise TypeError(f"{what} yields values: they are stored, so it cannot be volatile")
    if options.transactional:
        raise TypeError(
            f"{what} yields values: they are stored one after the other, so it has no transaction of its own"
        )


def _retention(what: str, options: MessageOptions) -> Retention:
    if not options.persisted and (options.keep, options.keep_keys) != (None, None):
        raise TypeError(f"{what}: nothing of a volatile message is kept")
    return read_retention(what, options.keep, options.keep_keys)


def _retry(what: str, options: MessageOptions) -> RetryPolicy | None:
    if options.retry is not None and not options.persisted:
        raise TypeError(f"{what}: a volatile message is not run again, so it takes no retry")
    return options.retry


def _uninterruptible(what: str, options: MessageOptions) -> bool:
    if options.uninterruptible and not options.persisted:
        raise TypeError(f"{what}: a volatile message cannot be cancelled")
    return options.uninterruptible


def _transactional(what: str, options: MessageOptions) -> bool:
    if options.transactional and (options.concurrent or not options.persisted):
        raise TypeError(f"{what}: only a persisted message that is not concurrent can be transactional")
    return options.transactional


def _head_of_line(type_name: str, word: str) -> HeadOfLine:
    try:
        return HeadOfLine(word)
    except ValueError:
        raise TypeError(f"{type_name}: head_of_line is block or park, not {word!r}") from None


def _without_activation(function: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """Handlers are called with an activation; a task's function does not want it."""

    @wraps(function)
    async def run_async(activation: object, /, **arguments: object) -> object:
        return await function(**arguments)

    @wraps(function)
    def run(activation: object, /, **arguments: object) -> object:
        return function(**arguments)

    return run_async if is_async else run


def _forget_message(type_name: str) -> MessageDefinition:
    """Its handler does nothing: the runner's commit does it."""

    async def forget(activation: object) -> None: ...

    return _message_definition(type_name, FORGET, forget, MessageOptions(), method=True)


def _require_primary_key(
    what: str, options: MessageOptions, parameters: Mapping[str, object], defaults: Mapping[str, object]
) -> None:
    key = options.primary_key
    if key is None:
        return
    if key not in parameters:
        raise TypeError(f"{what}: primary_key names {key}, which is no parameter")
    if key in defaults:
        raise TypeError(f"{what}: {key} has a default, so all calls that leave it out would be one request")
    if not options.persisted:
        raise TypeError(f"{what}: a volatile message cannot have a primary key, nothing remembers it")


def _require_name(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise TypeError(f"{name!r} cannot be the name of {what}: use letters, digits, _, - and .")
    return name


def _require_group(name: str) -> str:
    if not _GROUP.fullmatch(name):
        raise TypeError(f"{name!r} cannot be the name of a shard group: use letters, digits, _, - and .")
    return name


def _require_limits(type_name: str, options: EntityOptions) -> None:
    for name in ("mailbox_capacity", "concurrency"):
        if getattr(options, name) < 1:
            raise TypeError(f"{type_name}: {name} must be at least 1, not {getattr(options, name)}")
    if not options.max_idle > 0:
        raise TypeError(f"{type_name}: max_idle must be above 0 seconds, not {options.max_idle}")
