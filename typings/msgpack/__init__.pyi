# msgpack has no types of its own: the part of it that entityq uses.
from collections.abc import Callable
from typing import Any, NamedTuple

class StackError(ValueError): ...

class ExtType(NamedTuple):
    code: int
    data: bytes

class Packer:
    def pack_array_header(self, size: int) -> bytes: ...

def packb(o: object, *, use_bin_type: bool = True) -> bytes: ...
def unpackb(
    packed: bytes,
    *,
    strict_map_key: bool = True,
    timestamp: int = 0,
    object_hook: Callable[[dict[Any, Any]], Any] | None = None,
    list_hook: Callable[[list[Any]], Any] | None = None,
    ext_hook: Callable[[int, bytes], Any] = ...,
    max_array_len: int = -1,
    max_map_len: int = -1,
    max_ext_len: int = -1,
) -> Any: ...
