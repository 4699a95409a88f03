"""The composition root: registry, configuration, and the one place that knows concrete implementations."""

from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, overload

from entityq.codec import Limits
from entityq.config import Settings
from entityq.definition import EntityDefinition
from entityq.entity import Entity
from entityq.ports import Sender
from entityq.registration import EntityOptions, TaskOptions, define_entity, define_task
from entityq.serializer import Serializer
from entityq.snowflake import Snowflakes, client_machine
from entityq.task import Task, TaskDecorator

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=Entity)


class EntityQ:
    """`name` is the cluster's namespace unless a setting says otherwise; `overrides` are settings by name."""

    def __init__(self, name: str, *, settings: Settings | None = None, **overrides: object) -> None:
        self.name = name
        self._given_settings = settings
        self._overrides = overrides
        self._definitions: dict[str, EntityDefinition] = {}

    @cached_property
    def settings(self) -> Settings:
        """Read at first use: importing a module with an app needs no servers. Raises UnsafeConfiguration."""
        return self._given_settings or Settings.load(self.name, self._overrides)

    @property
    def definitions(self) -> Mapping[str, EntityDefinition]:
        """By entity type; a task's type is its name."""
        return MappingProxyType(self._definitions)

    @property
    def serializer(self) -> Serializer:
        """Of payloads. Raises UnsafeConfiguration at first use."""
        return self._serializer

    def new_id(self) -> int:
        """A new request id: unique in the cluster, roughly in the order of time."""
        return self._snowflakes.new()

    def sender(self) -> Sender:
        """The client, used outside of turns."""
        raise NotImplementedError

    @cached_property
    def _serializer(self) -> Serializer:
        settings = self.settings
        return Serializer(settings.serializer, frozenset(settings.accept), Limits(settings.max_payload))

    @cached_property
    def _snowflakes(self) -> Snowflakes:
        return Snowflakes(client_machine())

    @overload
    def entity(self, cls: type[E], /) -> type[E]: ...

    @overload
    def entity(
        self,
        /,
        *,
        type: str | None = None,
        shard_group: str = "default",
        mailbox_capacity: int = 100,
        max_idle: float = 300.0,
        concurrency: int = 1,
    ) -> Callable[[type[E]], type[E]]: ...

    def entity(
        self,
        cls: type[E] | None = None,
        /,
        *,
        type: str | None = None,
        shard_group: str = "default",
        mailbox_capacity: int = 100,
        max_idle: float = 300.0,
        concurrency: int = 1,
    ) -> type[E] | Callable[[type[E]], type[E]]:
        """Makes a subclass of Entity an entity type of this app. Raises TypeError for what cannot work.

        type: its name in addresses, by default the class's name.
        shard_group: the shards, and so the workers, that it lives on.
        mailbox_capacity: requests that one entity keeps waiting in memory.
        max_idle: seconds without a request after which an entity leaves memory.
        concurrency: how many messages declared `concurrent` one entity processes at once.
        """
        options = EntityOptions(type, shard_group, mailbox_capacity, max_idle, concurrency)
        return partial(self._add_entity, options) if cls is None else self._add_entity(options, cls)

    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R, R]: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        shard_group: str = "default",
        primary_key: str | None = None,
        persisted: bool = True,
        timeout: float | None = None,
    ) -> TaskDecorator: ...

    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        shard_group: str = "default",
        primary_key: str | None = None,
        persisted: bool = True,
        timeout: float | None = None,
    ) -> Task[..., Any, Any] | TaskDecorator:
        """Makes a function a task of this app. Raises TypeError for what cannot work.

        name: its name in addresses, by default the function's name.
        primary_key: the parameter that makes a call known: a repeat gets the first reply.
        persisted, timeout: as for `@message`.
        """
        options = TaskOptions(name, shard_group, primary_key, persisted, timeout)
        decorator = TaskDecorator(partial(self._add_task, options))
        return decorator if function is None else self._add_task(options, function)

    def _add_entity(self, options: EntityOptions, cls: type[E]) -> type[E]:
        definition = define_entity(cls, options)
        self._register(definition)
        cls.__definition__ = definition
        cls.__home__ = self
        return cls

    def _add_task(self, options: TaskOptions, function: Callable[..., Any]) -> Task[..., Any, Any]:
        definition = define_task(function, options)
        self._register(definition)
        task: Task[..., Any, Any] = Task(function, definition, self)
        return task

    def _register(self, definition: EntityDefinition) -> None:
        if definition.type in self._definitions:
            raise TypeError(f"the app {self.name} already has an entity type or task {definition.type}")
        self._definitions[definition.type] = definition
