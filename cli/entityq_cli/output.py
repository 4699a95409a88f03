"""What commands print on stdout: one JSON document, or a plain table."""

from collections.abc import Sequence
from datetime import datetime

import click
from pydantic_core import to_json


def json_text(value: object) -> str:
    """Any value that can be in a reply; bytes are base64, times ISO 8601."""
    return to_json(value, bytes_mode="base64").decode()


def print_json(document: object) -> None:
    click.echo(json_text(document))


def utc(moment: datetime | None) -> str | None:
    """ISO 8601, for documents."""
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def text_time(moment: datetime | None) -> str:
    """The same for people."""
    return utc(moment) or "-"


def facts(known: Sequence[tuple[str, str]]) -> str:
    """A line each, the values below each other."""
    width = max((len(name) for name, _ in known), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in known)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, two spaces between them."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
