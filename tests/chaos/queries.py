"""The named queries of audit.sql."""

import re
from collections.abc import Mapping
from pathlib import Path

_PARTS = re.split(
    rb"^-- name: (\w+)$", Path(__file__).with_name("audit.sql").read_bytes(), flags=re.MULTILINE
)

QUERIES: Mapping[str, bytes] = {
    name.decode(): text for name, text in zip(_PARTS[1::2], _PARTS[2::2], strict=True)
}
