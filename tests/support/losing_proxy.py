"""A Unix socket in front of Postgres that can lose what the server says, as a network does."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

_SOCKET = ".s.PGSQL.5432"
_BLOCK = 65_536


class LosingProxy:
    """`url` leads through it. After `lose`, the next connection that asks for `marker` is cut before it gets
    its answer: Postgres has done the work, and the client does not know."""

    def __init__(self, target: Path, url: str) -> None:
        self.url = url
        self.lost = asyncio.Event()
        self._target = target
        self._marker: bytes | None = None
        self._then_refuse = False
        self._at_once = False
        self._unsent = False
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Future[None]] = set()

    def lose(
        self, marker: bytes, *, then_refuse: bool = False, at_once: bool = False, unsent: bool = False
    ) -> None:
        """`then_refuse`: as if the network were gone for good, until `heal`. `at_once`: while the server is
        still at work. `unsent`: before the server gets it."""
        self._unsent = unsent
        self._marker = marker
        self._at_once = at_once
        self._then_refuse = then_refuse
        self.lost.clear()

    def heal(self) -> None:
        self._refusing = False

    async def end(self) -> None:
        for writer in self._writers:
            writer.close()
        if self._serving:
            await asyncio.wait(self._serving, timeout=5)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serving.add(ended)
        try:
            await self._serve(reader, writer)
        finally:
            self._serving.discard(ended)
            ended.set_result(None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.close()
            return
        from_server, to_server = await asyncio.open_unix_connection(str(self._target))
        self._writers |= {writer, to_server}
        cut = asyncio.Event()
        tasks = [
            asyncio.create_task(self._requests(reader, to_server, cut)),
            asyncio.create_task(self._answers(from_server, writer, cut)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (writer, to_server):
            each.close()
            self._writers.discard(each)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event
    ) -> None:
        while data := await reader.read(_BLOCK):
            if self._marker is not None and self._marker in data:
                self._marker = None
                cut.set()
                if self._unsent:
                    self.lost.set()
                    return
            writer.write(data)
            await writer.drain()
            if cut.is_set() and self._at_once:
                self.lost.set()
                return

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event
    ) -> None:
        while data := await reader.read(_BLOCK):
            # ReadyForQuery: the statement is committed.
            if cut.is_set():
                if not data.endswith(b"Z\x00\x00\x00\x05I"):
                    continue
                self._refusing = self._then_refuse
                self.lost.set()
                return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def losing_proxy(postgres_url: str) -> AsyncGenerator[LosingProxy, None]:
    """In front of a server that listens on a Unix socket, as the embedded ones do."""
    parts = urlsplit(postgres_url)
    directory = Path(tempfile.mkdtemp(prefix="eqp"))
    target = Path(parse_qs(parts.query)["host"][0]) / _SOCKET
    proxy = LosingProxy(target, urlunsplit(parts._replace(query=f"host={quote(str(directory))}")))
    server = await asyncio.start_unix_server(proxy.serve, str(directory / _SOCKET))
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
        shutil.rmtree(directory)
