"""Functions of which one runs in the whole cluster: by the owner of the shard that their name is in."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import ClassVar, TypeVar, overload

from entityq.definition import EntityDefinition
from entityq.entity import Entity
from entityq.registration import EntityOptions, define_entity
from entityq.retry import RetryPolicy

# Frozen: the type is `_singleton.<group>`, the entity's id the singleton's name. It decides the shard.
PREFIX = "_singleton."

SINGLETON_RETRY = RetryPolicy(initial=0.5, factor=2.0, maximum=30.0, total=inf, attempts=None)


@dataclass(frozen=True, slots=True)
class SingletonContext:
    """`fencing_token` is (epoch of the lease, number of the start under it): it only grows, so an outside system
    that remembers the greatest one can refuse whoever comes late."""

    name: str
    fencing_token: tuple[int, int]


SingletonFunction = Callable[[SingletonContext], Awaitable[None]]
F = TypeVar("F", bound=SingletonFunction)


@dataclass(frozen=True, slots=True, eq=False)
class Singleton:
    """`retry`: the pauses before it is started again; its attempts and total are not counted."""

    name: str
    function: SingletonFunction
    retry: RetryPolicy = SINGLETON_RETRY


class Singletons(Entity):
    """The entity type of the singletons of one shard group. It takes no messages: it is what gives them a shard."""

    _singletons: ClassVar[Mapping[str, Singleton]] = MappingProxyType({})

    @classmethod
    def declared(cls) -> Mapping[str, Singleton]:
        """By the code of this process."""
        return cls._singletons


def new_singleton(function: SingletonFunction, name: str | None, retry: RetryPolicy) -> Singleton:
    """Raises TypeError for what cannot work."""
    if not inspect.iscoroutinefunction(function):
        raise TypeError(
            f"@app.singleton is for an async def, because it is ended by cancelling: {function!r}"
        )
    given = function.__name__ if name is None else name
    if len(inspect.signature(function).parameters) != 1:
        raise TypeError(f"the singleton {given} takes one argument, its SingletonContext")
    return Singleton(given, function, retry)


class SingletonDecorator:
    """Of one app. `register` takes the entity types that give singletons their shards, one for each shard group."""

    def __init__(self, register: Callable[[EntityDefinition], None]) -> None:
        self._register = register
        self._groups: dict[str, dict[str, Singleton]] = {}

    @overload
    def __call__(self, function: F, /) -> F: ...

    @overload
    def __call__(
        self,
        /,
        *,
        name: str | None = None,
        shard_group: str = "default",
        retry: RetryPolicy = SINGLETON_RETRY,
    ) -> Callable[[F], F]: ...

    def __call__(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        shard_group: str = "default",
        retry: RetryPolicy = SINGLETON_RETRY,
    ) -> F | Callable[[F], F]:
        """Runs an async function, with a SingletonContext, in one runner of the cluster for as long as there is one.

        It is started again when it raises or returns, after the pauses of `retry`, and by another runner when its
        own has died; it is cancelled when its shard moves. Raises TypeError for what cannot work.
        """

        def decorate(function: F) -> F:
            self._add(new_singleton(function, name, retry), shard_group)
            return function

        return decorate if function is None else decorate(function)

    @property
    def names(self) -> Sequence[str]:
        """Of the singletons that the app declares."""
        return sorted(name for singletons in self._groups.values() for name in singletons)

    def _add(self, singleton: Singleton, group: str) -> None:
        if singleton.name in self.names:
            raise TypeError(
                f"the app already has a singleton {singleton.name}: give this one a name of its own"
            )
        singletons = self._groups.setdefault(group, {})
        if not singletons:
            self._register(define_singletons(group, singletons))
        singletons[singleton.name] = singleton


def define_singletons(group: str, singletons: Mapping[str, Singleton]) -> EntityDefinition:
    """The type of a group; `singletons` may still grow."""

    class OfGroup(Singletons):
        _singletons = singletons

    return define_entity(OfGroup, EntityOptions(f"{PREFIX}{group}", shard_group=group))
