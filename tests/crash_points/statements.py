"""The names of statements: those that they have in our .sql files."""

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

from entityq.postgres.queries import load

_PLACEHOLDER = re.compile(rb"%\(\w+\)[bst]|%[bst]|\$\d+")
_SPACE = re.compile(rb"\s+")
_KEPT_WORDS = 2


def normalised(text: bytes) -> bytes:
    """The same for a query of ours and for what psycopg makes of it."""
    return _SPACE.sub(b" ", _PLACEHOLDER.sub(b"?", text).replace(b"%%", b"%")).strip()


def load_names() -> Mapping[bytes, str]:
    """`file.query` by normalised text, of all files."""
    names: dict[bytes, str] = {}
    for file in resources.files("entityq.postgres").iterdir():
        stem, dot, suffix = file.name.partition(".")
        if dot and suffix == "sql":
            for name, text in load(file.name).items():
                names[normalised(text)] = f"{stem}.{name}"
    return MappingProxyType(names)


def name_of(text: bytes, names: Mapping[bytes, str]) -> str:
    """Of a statement that is in no file, its first words in capitals: `LISTEN`, `BEGIN`."""
    found = names.get(normalised(text))
    if found is not None:
        return found
    words = re.findall(r"\b[A-Z]{2,}\b", text.decode(errors="replace"))
    return " ".join(words[:_KEPT_WORDS]) or "nothing"
