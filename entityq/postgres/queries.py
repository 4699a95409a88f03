"""Named queries of the .sql files in this package.

    INSERT = load("outbox.sql")["insert_requests"]

Modules take their queries by name at import, so a missing one fails there and not in the middle of a turn.
"""

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

_NAME = re.compile(rb"^-- name: (\w+)[ \t]*$", re.MULTILINE)
_COMMENT_LINE = re.compile(rb"^[ \t]*--.*\n?", re.MULTILINE)


def load(file: str) -> Mapping[str, bytes]:
    """The queries of one file of this package, by name.

    Comment lines are taken out: psycopg looks for placeholders in them too, for long queries at each call.
    Raises ValueError for a name without a query, a query without a name, and a name that is given twice.
    """
    parts = _NAME.split(resources.files("entityq.postgres").joinpath(file).read_bytes())
    if _body(parts[0]):
        raise ValueError(f"{file}: the text before the first '-- name:' belongs to no query")
    queries: dict[str, bytes] = {}
    for name, text in zip((part.decode() for part in parts[1::2]), parts[2::2], strict=True):
        body = _body(text)
        if not body or name in queries:
            raise ValueError(f"{file}: query {name} is {'given twice' if name in queries else 'empty'}")
        queries[name] = body
    return MappingProxyType(queries)


def _body(text: bytes) -> bytes:
    return _COMMENT_LINE.sub(b"", text).strip().removesuffix(b";").strip()
