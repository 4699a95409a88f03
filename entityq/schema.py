"""Payloads, replies, failures and state: annotations, checked and converted by pydantic, stored as msgpack.

Every schema goes one way: value, checked (pydantic, lax mode), plain (builtins), bytes (codec); and back.
Names on the wire are the Python names, never aliases, so that what was dumped can always be read again.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast, get_origin, get_type_hints

from pydantic import GetCoreSchemaHandler, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, PydanticSerializationError, core_schema

from entityq.canonical import payload_hash
from entityq.codec import Limits, pack, unpack
from entityq.errors import MalformedMessage
from entityq.signature import Signature
from entityq.upcast import Upcaster

# Fields of a stored state that this code does not know are kept under this key and written back:
# during a rolling deploy, old code must not erase what new code has saved.
UNREAD = "$unread"

# What this cluster has stored was bounded when it was written, and limits may have been lowered since.
_STORED_STATE = Limits(max_bytes=16 * 1024**2, max_depth=512, max_containers=16 * 1024**2)

_SHOWN_PROBLEMS = 5


class NewerState(Exception):
    """A newer version of the class has stored the state: to be left for a process that has it."""


def public_annotations(cls: type[object]) -> dict[str, Any]:
    """The annotated fields of a class (no `_` in front, no ClassVar), those of its bases first.

    Raises TypeError when an annotation cannot be resolved.
    """
    try:
        hints = get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError) as error:
        raise TypeError(
            f"the annotations of {cls.__qualname__} cannot be resolved ({error}): "
            "the types must be importable names of its module"
        ) from error
    return {
        name: hint for name, hint in hints.items() if not name.startswith("_") and not _is_class_var(hint)
    }


def _is_class_var(hint: object) -> bool:
    return hint is ClassVar or get_origin(hint) is ClassVar


class Record:
    """A mapping with fixed, annotated names, some of which have a default; `what` names it in errors."""

    def __init__(self, annotations: Mapping[str, Any], defaults: Mapping[str, object], what: str) -> None:
        """Raises TypeError for an annotation that pydantic cannot check or a default that does not fit."""
        self.names = tuple(annotations)
        self.what = what
        self._adapter = _adapter(
            Annotated[dict[str, Any], _RecordType(annotations, frozenset(defaults))], what
        )
        self.defaults = {
            name: _checked_default(annotations[name], default, f"{what}: {name}")
            for name, default in defaults.items()
        }

    def check(self, given: Mapping[str, object]) -> dict[str, object]:
        checked: dict[str, object] = _checked(self._adapter, given, self.what)
        return checked

    def fill(self, checked: dict[str, object]) -> dict[str, object]:
        """Adds the defaults that are missing; mutable ones are copied."""
        for name, default in self.defaults.items():
            if name not in checked:
                checked[name] = deepcopy(default)
        return checked

    def plain(self, checked: Mapping[str, object]) -> dict[str, object]:
        plain: dict[str, object] = _plain(self._adapter, checked, self.what)
        return plain

    def encode(self, checked: Mapping[str, object], limits: Limits) -> bytes:
        return pack(self.plain(checked), limits, self.what)

    def read(self, plain: object) -> dict[str, object]:
        """Checked and converted, defaults filled in. Raises MalformedMessage, also for an unknown name."""
        return self.fill(self.check(as_map(plain, self.what)))


class PayloadSchema:
    """The arguments of one handler; `what` ("Account.deposit") names it in errors."""

    def __init__(self, signature: Signature, what: str) -> None:
        """Raises TypeError for a parameter that pydantic cannot check or a default that does not fit."""
        self._positional = signature.positional
        self._record = Record(signature.parameters, signature.defaults, f"payload of {what}")
        self._plain_defaults = self._record.plain(self._record.defaults)

    @property
    def what(self) -> str:
        """What errors call it."""
        return self._record.what

    @property
    def parameters(self) -> tuple[str, ...]:
        return self._record.names

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
        """What the caller gave, by name, checked and converted. Raises MalformedMessage with the name."""
        if not args:
            return self._record.check(kwargs)
        if len(args) > len(self._positional):
            raise MalformedMessage(
                f"{self._record.what}: {len(args)} arguments by place, at most {len(self._positional)} fit"
            )
        given = dict(zip(self._positional, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise MalformedMessage(f"{self._record.what}: {min(twice)}: given by place and by name")
        given.update(kwargs)
        return self._record.check(given)

    def plain(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """What a serializer can write; what was left out stays out, whoever runs the message fills it in."""
        return self._record.plain(arguments)

    def read(self, plain: object) -> dict[str, object]:
        """Checked and converted, defaults filled in. Raises MalformedMessage, also for an unknown name."""
        return self._record.read(plain)

    def decode(self, data: bytes, limits: Limits) -> dict[str, object]:
        """The same, of a payload in msgpack."""
        return self.read(unpack(data, limits, self.what))

    def hash(self, plain: Mapping[str, object]) -> bytes:
        """Equal for calls that mean the same: arguments equal to their default are left out."""
        return payload_hash(plain, self._plain_defaults)


class ValueSchema:
    """One annotated value; `what` ("reply of Account.deposit") names it in errors."""

    def __init__(self, annotation: object, what: str) -> None:
        self._what = what
        self._adapter = _adapter(annotation, what)

    def encode(self, value: object, limits: Limits) -> bytes:
        """Raises MalformedMessage when the value does not fit the annotation, PayloadTooLarge."""
        checked = _checked(self._adapter, value, self._what)
        return pack(_plain(self._adapter, checked, self._what), limits, self._what)

    def decode(self, data: bytes, limits: Limits) -> Any:
        return _checked(self._adapter, unpack(data, limits, self._what), self._what)


class StateSchema:
    """The durable fields of an entity class, each with a default; `what` ("Account") names it in errors.

    `upcasters`: one for each older version, in order.
    """

    def __init__(
        self,
        annotations: Mapping[str, Any],
        defaults: Mapping[str, object],
        what: str,
        upcasters: Sequence[Upcaster] = (),
    ) -> None:
        """Raises TypeError for an annotation that pydantic cannot check or a default that does not fit."""
        self._record = Record(annotations, defaults, f"state of {what}")
        self._upcasters = tuple(upcasters)
        self.version = len(self._upcasters) + 1

    @property
    def fields(self) -> tuple[str, ...]:
        return self._record.names

    def default(self, field: str) -> object:
        return self._record.defaults[field]

    def new(self) -> dict[str, object]:
        return self._record.fill({})

    def dump(self, entity: object, limits: Limits) -> bytes:
        """The same bytes for the same values. Raises MalformedMessage for one that does not fit its field."""
        live = vars(entity)
        plain = self._record.plain(self._record.check({name: live[name] for name in self._record.names}))
        plain.update(live.get(UNREAD, {}))
        return pack(plain, limits, self._record.what)

    def upcast(self, data: bytes | None, version: int) -> bytes | None:
        """What the class has stored as `version`, in the form of its version now.

        Raises NewerState for a version above it, MalformedMessage, and what an upcaster raises.
        """
        if data is None or version == self.version:
            return data
        what = self._record.what
        if version > self.version:
            raise NewerState(f"the {what} was stored with version {version}, this code has {self.version}")
        fields = as_map(unpack(data, _STORED_STATE, what), what)
        for upcaster in self._upcasters[version - 1 :]:
            fields = as_map(upcaster(fields), f"{what}, upcast from version {upcaster.version}")
        return pack(fields, _STORED_STATE, what)

    def load(self, data: bytes | None) -> dict[str, object]:
        """The values of a new activation; None is an entity that was never saved. Raises MalformedMessage.

        A field that the data lacks gets its default, one that this code lacks is kept (see UNREAD).
        """
        if data is None:
            return self.new()
        stored = as_map(unpack(data, _STORED_STATE, self._record.what), self._record.what)
        unread = {name: stored.pop(name) for name in tuple(stored) if name not in self._record.names}
        values = self._record.fill(self._record.check(stored))
        if unread:
            values[UNREAD] = unread
        return values


@dataclass(frozen=True)
class _RecordType:
    """Not a BaseModel: a parameter may have any name, and a dict is what handlers are called with."""

    annotations: Mapping[str, Any]
    optional: frozenset[str]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        fields = {
            name: core_schema.typed_dict_field(
                handler.generate_schema(annotation), required=name not in self.optional
            )
            for name, annotation in self.annotations.items()
        }
        return core_schema.typed_dict_schema(fields, extra_behavior="forbid")


def _adapter(annotation: Any, what: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        raise TypeError(f"{what}: {error.message}") from error


def _checked(adapter: TypeAdapter[Any], value: object, what: str) -> Any:
    try:
        return adapter.validate_python(value, by_alias=True, by_name=True)
    except ValidationError as error:
        raise MalformedMessage(f"{what}: {_problems(error)}") from error


def _checked_default(annotation: object, default: object, what: str) -> object:
    try:
        return _checked(_adapter(annotation, what), default, what)
    except MalformedMessage as error:
        raise TypeError(f"the default does not fit its annotation: {error.what}") from error


def _plain(adapter: TypeAdapter[Any], checked: object, what: str) -> Any:
    try:
        # warnings="error": a model that was changed after it was made may no longer fit its own fields.
        return adapter.dump_python(checked, round_trip=True, warnings="error")
    except PydanticSerializationError as error:
        raise MalformedMessage(f"{what}: {error}") from error


def _problems(error: ValidationError) -> str:
    """Names and reasons, never the values: they may be secrets."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
        for problem in problems[:_SHOWN_PROBLEMS]
    ]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def as_map(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{what}: a map was expected, got {type(value).__name__}")
    return cast("dict[str, object]", value)
