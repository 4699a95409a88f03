"""The chunks of streams in the database, as callers read and acknowledge them."""

from entityq.chunk import Chunk
from entityq.postgres.channels import channel_of
from entityq.postgres.connect import Connection
from entityq.postgres.queries import load

_SQL = load("chunks.sql")
_READ, _ACKNOWLEDGE = _SQL["read_chunks"], _SQL["acknowledge_chunk"]

PAGE = 500
PAGE_BYTES = 8 * 1024**2


async def read_chunks(connection: Connection, request_id: int, after: int) -> list[Chunk]:
    """The next ones of the number `after`, in order; a page at most. Raises psycopg.Error."""
    values = {"request_id": request_id, "after": after, "page": PAGE, "page_bytes": PAGE_BYTES}
    rows = await (await connection.execute(_READ, values)).fetchall()
    return [Chunk(number, value) for number, value in rows]


async def acknowledge_chunk(connection: Connection, namespace: str, request_id: int, number: int) -> None:
    """The caller has had all up to this one. Raises psycopg.Error."""
    values = {"request_id": request_id, "number": number, "channel": acknowledgements_channel(namespace)}
    await connection.execute(_ACKNOWLEDGE, values)


def acknowledgements_channel(namespace: str) -> str:
    """Where runners are told, by NOTIFY, which chunks callers have had.

    Frozen: that of the name `chunks:<namespace>`. (No namespace has a colon.)
    """
    return channel_of(f"chunks:{namespace}")


def parse_acknowledgement(payload: str) -> tuple[int, int]:
    """The request id and the chunk's number: decimal, with a colon between them. Raises ValueError for what is none."""
    request_id, number = payload.split(":")
    return int(request_id), int(number)
