"""What goes to stdout."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from entityq_cli.output import json_text, table


@dataclass
class Point:
    x: int


def test_values_of_replies_as_json() -> None:
    value = {
        "decimal": Decimal("1.50"),
        "bytes": b"\xff",
        "uuid": UUID(int=1),
        "set": {1},
        "point": Point(2),
        "time": datetime(2026, 11, 23, tzinfo=UTC),
        "delta": timedelta(minutes=1),
        "none": None,
        "long": 2**63 - 1,
    }

    assert json.loads(json_text(value)) == {
        "decimal": "1.50",
        "bytes": "_w==",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "set": [1],
        "point": {"x": 2},
        "time": "2026-11-23T00:00:00Z",
        "delta": "PT1M",
        "none": None,
        "long": 2**63 - 1,
    }


def test_a_table_has_columns_and_no_trailing_spaces() -> None:
    text = table(("NAME", "COUNT"), [("a", "1"), ("longer", "")])

    assert text == "NAME    COUNT\na       1\nlonger"
