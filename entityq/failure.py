"""Failures: exceptions that an entity declares, sent to the caller typed."""

import inspect
import sys
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, ClassVar, dataclass_transform

from entityq.codec import Limits, unpack
from entityq.errors import MalformedMessage
from entityq.schema import Record, public_annotations


class FailureSchema:
    """The fields of one Failure class, found out at first use, when its annotations can be resolved."""

    def __init__(self, cls: "type[Failure]") -> None:
        self._cls = cls

    @cached_property
    def _record(self) -> Record:
        annotations = public_annotations(self._cls)
        if reserved := annotations.keys() & set(dir(Exception)):
            raise TypeError(f"{self._cls.__name__}: {min(reserved)} is taken by Exception")
        declared = {name: inspect.getattr_static(self._cls, name, self) for name in annotations}
        defaults = {name: value for name, value in declared.items() if value is not self}
        return Record(annotations, defaults, self._cls.__name__)

    def check(self, fields: dict[str, object]) -> dict[str, object]:
        """Raises TypeError: a failure is made in code, and only code can make it wrongly."""
        try:
            return self._record.fill(self._record.check(fields))
        except MalformedMessage as error:
            raise TypeError(error.what) from error

    def fields(self, failure: "Failure") -> dict[str, object]:
        live = vars(failure)
        return {name: live[name] for name in self._record.names}

    def encode(self, failure: "Failure", limits: Limits) -> bytes:
        """Raises MalformedMessage or PayloadTooLarge: fields may have changed since they were checked."""
        return self._record.encode(self._record.check(self.fields(failure)), limits)

    def decode(self, data: bytes, limits: Limits) -> "Failure":
        """Raises MalformedMessage. Does not call __init__, which a subclass may have changed."""
        failure = self._cls.__new__(self._cls)
        vars(failure).update(self._record.read(unpack(data, limits, self._record.what)))
        return failure


@dataclass_transform(kw_only_default=True)
class Failure(Exception):
    """Subclass it with annotated fields; raised by a handler, it reaches the caller as the same type.

    A turn that raises one leaves the state as it was and is not repeated: a failure is an answer.
    """

    __schema__: ClassVar[FailureSchema]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__schema__ = FailureSchema(cls)

    def __init__(self, **fields: Any) -> None:
        """Takes the annotated fields, by name. Raises TypeError when they do not fit."""
        if type(self) is Failure:
            raise TypeError("Failure is a base class: subclass it, so that the caller can tell what happened")
        super().__init__()
        vars(self).update(self.__schema__.check(fields))

    def __str__(self) -> str:
        fields = self.__schema__.fields(self)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Failure) or type(self) is not type(other):
            return NotImplemented
        return self.__schema__.fields(self) == self.__schema__.fields(other)

    def __hash__(self) -> int:
        return hash(type(self))  # the fields may change, and need not be hashable

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self.__schema__.fields(self)), (), vars(self)


class UnknownFailure(Failure):
    """A failure whose class this process does not know: its name and its fields as they were sent."""

    type: str
    data: dict[str, Any]


def find_failure(name: str, module: str) -> type[Failure] | None:
    """The Failure class of that name: what `module` calls so, else the one defined there, else the only one.

    The newest of several definitions in one module; None when there is none, or several elsewhere.
    """
    visible = getattr(sys.modules.get(module), name, None)
    if isinstance(visible, type) and issubclass(visible, Failure) and visible.__name__ == name:
        return visible
    found = {cls.__module__: cls for cls in _subclasses(Failure) if cls.__name__ == name}
    if module in found:
        return found[module]
    return next(iter(found.values())) if len(found) == 1 else None


def _subclasses(cls: type[Failure]) -> Iterator[type[Failure]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
