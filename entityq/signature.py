"""What a handler's signature says: the annotated parameters, their defaults and the annotated result."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

_BY_PLACE = inspect.Parameter.POSITIONAL_OR_KEYWORD
_BY_NAME = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True)
class Signature:
    """`result` is what the handler returns, or, where it `streams`, what it yields."""

    parameters: Mapping[str, Any]
    positional: tuple[str, ...]
    defaults: Mapping[str, object]
    result: Any
    is_async: bool
    streams: bool = False


def read_signature(handler: Callable[..., object], what: str, *, method: bool) -> Signature:
    """Raises TypeError, naming `what`, for anything that cannot be sent as a message.

    `method` leaves out the first parameter, which is the entity.
    """
    if inspect.isgeneratorfunction(handler):
        raise TypeError(
            f"{what} is a generator: one that streams is an async def, so that it can be held back"
        )
    streams = inspect.isasyncgenfunction(handler)
    parameters = list(inspect.signature(handler).parameters.values())[1 if method else 0 :]
    hints = _type_hints(handler, what)
    for parameter in parameters:
        _require_sendable(parameter, hints, what)
    if "return" not in hints:
        raise TypeError(
            f"{what} has no return annotation: it says how the reply is checked (use -> None for none)"
        )
    return Signature(
        parameters={parameter.name: hints[parameter.name] for parameter in parameters},
        positional=tuple(parameter.name for parameter in parameters if parameter.kind is _BY_PLACE),
        defaults={
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.default is not inspect.Parameter.empty
        },
        result=_yielded(hints["return"], what) if streams else hints["return"],
        is_async=streams or inspect.iscoroutinefunction(handler),
        streams=streams,
    )


def _type_hints(handler: Callable[..., object], what: str) -> dict[str, Any]:
    try:
        return get_type_hints(handler, include_extras=True)
    except (NameError, AttributeError) as error:
        raise TypeError(
            f"the annotations of {what} cannot be resolved ({error}): "
            "the types must be importable names of its module"
        ) from error


def _yielded(result: Any, what: str) -> Any:
    arguments = get_args(result)
    if get_origin(result) not in (AsyncIterator, AsyncIterable, AsyncGenerator) or not arguments:
        raise TypeError(
            f"{what} yields values: annotate it with -> AsyncIterator[...], which says how each of them is checked"
        )
    return arguments[0]


def _require_sendable(parameter: inspect.Parameter, hints: Mapping[str, Any], what: str) -> None:
    if parameter.kind not in (_BY_PLACE, _BY_NAME):
        raise TypeError(
            f"{what}: parameter {parameter}: a payload is a map of names, "
            "so *args, **kwargs and positional-only parameters cannot be sent"
        )
    if parameter.name not in hints:
        raise TypeError(
            f"{what}: parameter {parameter.name} has no annotation: it says how the payload is checked"
        )
