"""How the programs and the tests talk: JSON lines on a Unix socket."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

LINE_LIMIT = 1024 * 1024


class Reports:
    """A program's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, kind: str, **fields: object) -> None:
        self._writer.write(json.dumps({"kind": kind, **fields}).encode() + b"\n")

    async def order(self) -> dict[str, Any] | None:
        """The next one; None when the tests have gone."""
        line = await self._reader.readline()
        return json.loads(line) if line else None


@asynccontextmanager
async def reporting(path: str) -> AsyncGenerator[Reports]:
    reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
    reports = Reports(reader, writer)
    reports.say("started", pid=os.getpid())
    try:
        yield reports
    finally:
        writer.close()
