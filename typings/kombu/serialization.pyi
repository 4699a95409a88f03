# kombu has no annotations here: the part of it that entityq uses.
from collections.abc import Callable, Container
from typing import Any

class SerializerRegistry:
    name_to_type: dict[str, str]
    type_to_name: dict[str, str]
    def register(
        self,
        name: str,
        encoder: Callable[[Any], str | bytes] | None,
        decoder: Callable[[Any], Any] | None,
        content_type: str,
        content_encoding: str = "utf-8",
    ) -> None: ...
    def unregister(self, name: str) -> None: ...
    def dumps(self, data: object, serializer: str | None = None) -> tuple[str, str, str | bytes]: ...
    def loads(
        self,
        data: bytes,
        content_type: str,
        content_encoding: str,
        accept: Container[str] | None = None,
    ) -> Any: ...

registry: SerializerRegistry
