"""How a payload is written: msgpack, or a serializer of kombu, with or without a compression.

A content type is "<serializer>[+<compression>]". Serializers are those of kombu's registry: json, or what the
user registered there. They take what msgpack takes (see `codec`), but for what they would change: that is an
error at the sender. So json takes no set, no timedelta and no map with other keys than text. Compressions are
those of kombu that can be undone within a bound.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from kombu.compression import compress
from kombu.exceptions import KombuError
from kombu.serialization import registry

from entityq.codec import Limits, check_size, pack, pack_any_size, unpack
from entityq.errors import MalformedMessage, PayloadTooLarge, UnsafeConfiguration

DEFAULT = "msgpack"

# By the type that kombu knows them under, whatever name they were registered with.
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "application/x-python-serialize": "Reading pickle runs the code that it contains",
        "application/x-yaml": "The aliases of YAML expand a few bytes into gigabytes",
    }
)
# An xz stream names the memory that reading it takes; kombu writes those that take 9 MiB.
_LZMA_MEMORY = 16 * 1024**2


class _Decompressor(Protocol):
    """What zlib, bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _lzma() -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)


# kombu's own decompress has no bound: of 1 MiB it can make 1 GiB. In kombu gzip is a name of zlib.
_DECOMPRESSORS: Mapping[str, Callable[[], _Decompressor]] = MappingProxyType(
    {
        "zlib": zlib.decompressobj,
        "gzip": zlib.decompressobj,
        "bzip2": bz2.BZ2Decompressor,
        "lzma": _lzma,
        "xz": _lzma,
    }
)


class Serializer:
    """Writes one content type, and reads those whose serializer is accepted, with any compression.

    Raises UnsafeConfiguration for a serializer that is not accepted, unknown to kombu or refused (pickle,
    YAML), and for a compression that cannot be bounded.
    """

    def __init__(self, content_type: str, accept: frozenset[str], limits: Limits) -> None:
        names = {_split(each)[0] for each in accept}
        self.content_type = content_type
        self._name, self._compression = _split(content_type)
        if self._name not in names:
            raise UnsafeConfiguration(
                f"The serializer {self._name} is not one of accept ({', '.join(sorted(names))}).",
                advice="Nobody could read what is sent: add it to accept.",
            )
        self._mime = {name: _mime(name) for name in names}
        self._limits = limits

    def encode(self, value: object, what: str) -> bytes:
        """The written value; `what` names it in errors.

        Raises MalformedMessage for what `codec.pack` refuses and for a value that the serializer would
        change, and PayloadTooLarge above the limit, before or after the compression.
        """
        if self.content_type == DEFAULT:
            return pack(value, self._limits, what)
        body = pack(value, self._limits, what) if self._name == DEFAULT else self._dumps(value, what)
        if self._compression is None:
            return body
        body, _ = compress(body, self._compression)
        check_size(body, self._limits.max_bytes, what)
        return body

    def decode(self, data: bytes, content_type: str, what: str) -> Any:
        """What was written. Raises PayloadTooLarge, and MalformedMessage for every other refusal."""
        if content_type == DEFAULT and DEFAULT in self._mime:
            return unpack(data, self._limits, what)
        check_size(data, self._limits.max_bytes, what)
        try:
            name, compression = _split(content_type)
        except UnsafeConfiguration as error:
            raise MalformedMessage(f"{what} cannot be decoded: {error}") from None
        if name not in self._mime:
            raise MalformedMessage(f"{what} cannot be decoded: {name} is not accepted here")
        if compression is not None:
            data = _decompress(data, compression, self._limits, what)
        return unpack(data, self._limits, what) if name == DEFAULT else self._loads(data, name, what)

    def _dumps(self, value: object, what: str) -> bytes:
        packed = pack_any_size(value, self._limits, what)
        try:
            _, _, text = registry.dumps(value, self._name)
        except KombuError as error:
            raise MalformedMessage(f"{what} cannot be encoded by {self._name}: {error}") from None
        body = text.encode() if isinstance(text, str) else text
        check_size(body, self._limits.max_bytes, what)
        if pack_any_size(self._loads(body, self._name, what), self._limits, what) != packed:
            raise MalformedMessage(
                f"{what} cannot be encoded by {self._name}: it would be read as another value",
                advice="Use msgpack.",
            )
        return body

    def _loads(self, data: bytes, name: str, what: str) -> object:
        if not data:  # kombu gives nothing to the serializer then
            raise MalformedMessage(f"{what} cannot be decoded by {name}: it is empty")
        mime = self._mime[name]
        try:
            value: object = registry.loads(data, mime, "utf-8", accept={mime})
        except KombuError as error:
            raise MalformedMessage(f"{what} cannot be decoded by {name}: {error}") from None
        pack_any_size(value, self._limits, what)
        return value


def _split(content_type: str) -> tuple[str, str | None]:
    name, plus, compression = content_type.partition("+")
    if not plus:
        return name, None
    if compression not in _DECOMPRESSORS:
        raise UnsafeConfiguration(
            f"{compression!r} is no compression that can be undone within a bound.",
            advice=f"There are {', '.join(_DECOMPRESSORS)}.",
        )
    return name, compression


def _mime(name: str) -> str:
    mime = registry.name_to_type.get(name)
    if mime is None:
        raise UnsafeConfiguration(
            f"kombu knows no serializer {name!r}.",
            advice="Register it with kombu.serialization.register before the app is made.",
        )
    if mime in _REFUSED:
        raise UnsafeConfiguration(f"{_REFUSED[mime]}: {name} is refused.", advice="Use msgpack or json.")
    return mime


def _decompress(data: bytes, compression: str, limits: Limits, what: str) -> bytes:
    decompressor = _DECOMPRESSORS[compression]()
    try:
        body = decompressor.decompress(data, limits.max_bytes + 1)
    except (zlib.error, OSError, ValueError, lzma.LZMAError, MemoryError) as error:
        raise MalformedMessage(f"{what} cannot be decompressed by {compression}: {error}") from None
    if len(body) > limits.max_bytes:
        raise PayloadTooLarge(f"{what} has more than {limits.max_bytes:,} bytes when decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedMessage(
            f"{what} cannot be decompressed by {compression}: it is cut, or goes on after its end"
        )
    return body
