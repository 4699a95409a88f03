"""State versions: from the stored fields of one version of a class to those of the next."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

Fields = dict[str, Any]

# Of the column in Postgres.
MAX_VERSION = 2**31 - 1


class Upcaster:
    """What `@upcast(version)` makes of a function; calling it calls the function."""

    def __init__(self, version: int, function: Callable[[Fields], Fields]) -> None:
        self.version = version
        self._function = function
        self.__doc__ = function.__doc__

    def __call__(self, fields: Fields) -> Fields:
        return self._function(fields)


def upcast(version: int) -> Callable[[Callable[[Fields], Fields]], Upcaster]:
    """Makes a static method of an entity read the state that version `version` of the class has stored.

        @upcast(1)
        @staticmethod
        def to_cents(fields: dict[str, Any]) -> dict[str, Any]:
            return {"cents": fields["balance"] * 100}

    It is given the stored fields by name, as builtins, and returns those of version `version` + 1. What it
    leaves in although the class has no such field is kept and written back. It must be quick and have no
    effects: it runs in the event loop, at every activation until a turn has stored the new version.
    """

    def decorate(function: Callable[[Fields], Fields]) -> Upcaster:
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f"@upcast({version}) is for plain functions: {function!r} is not one")
        return Upcaster(version, function)

    return decorate


def chain(upcasters: Iterable[Upcaster], state_version: int, what: str) -> tuple[Upcaster, ...]:
    """Those of the versions 1 to `state_version` - 1, in order. Raises TypeError, naming `what`, for any other."""
    if not 1 <= state_version <= MAX_VERSION:
        raise TypeError(f"{what}: state_version must be from 1 to {MAX_VERSION:,}, not {state_version}")
    by_version: dict[int, Upcaster] = {}
    for upcaster in upcasters:
        if not 1 <= upcaster.version < state_version:
            raise TypeError(
                f"{what}: @upcast({upcaster.version}) makes version {upcaster.version + 1} of the state, "
                f"and state_version is {state_version}"
            )
        if upcaster.version in by_version:
            raise TypeError(f"{what} has two upcasters from version {upcaster.version} of its state")
        by_version[upcaster.version] = upcaster
    missing = next((version for version in range(1, state_version) if version not in by_version), None)
    if missing is not None:
        raise TypeError(
            f"{what} has state_version {state_version} and no @upcast({missing}): "
            f"entities stored with version {missing} could not be read"
        )
    return tuple(by_version[version] for version in range(1, state_version))
