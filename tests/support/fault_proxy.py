"""A TCP proxy in front of a server that treats its connections as a bad network does.

In process: `async with fault_proxy(url) as proxy`. As a process of its own, which a busy test cannot slow down:
`with proxy_process(url) as proxy`. Both have `url`, the same URL through the proxy, and the same faults.
"""

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

_BLOCK = 65_536
# Blocks on their way in one direction of one connection: what a network and two sockets hold.
_IN_FLIGHT = 64
_ROOT = Path(__file__).parents[2]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Way:
    """What happens to one direction. `rate` in bytes per second and connection."""

    black_hole: bool = False
    delay: float = 0.0
    rate: float | None = None


@dataclass(frozen=True)
class Faults:
    refuse: bool = False
    to_server: Way = Way()
    to_client: Way = Way()


class Switches(ABC):
    """The faults. They add up until `heal`; with `existing=False` only new connections have them."""

    url: str

    def __init__(self) -> None:
        self._wanted = Faults()

    @abstractmethod
    def cut(self) -> None:
        """Resets every connection; what was on its way is lost."""

    @abstractmethod
    def apply(self, faults: Faults, *, existing: bool = True) -> None: ...

    def refuse(self) -> None:
        """New connections: connection refused. Those that exist go on."""
        self._apply(replace(self._wanted, refuse=True))

    def black_hole(self, *, to_server: bool = True, to_client: bool = True, existing: bool = True) -> None:
        """Half-open TCP: connections stay open, and nothing comes out, not even their end. What was sent
        meanwhile is delivered after `heal`, as TCP would send it again, unless there was a `cut`."""
        self._each(to_server, to_client, existing, black_hole=True)

    def delay(
        self, seconds: float, *, to_server: bool = True, to_client: bool = True, existing: bool = True
    ) -> None:
        """In each of these directions. Order is kept."""
        self._each(to_server, to_client, existing, delay=seconds)

    def throttle(
        self,
        bytes_per_second: float,
        *,
        to_server: bool = True,
        to_client: bool = True,
        existing: bool = True,
    ) -> None:
        """In each of these directions of each connection."""
        self._each(to_server, to_client, existing, rate=bytes_per_second)

    def heal(self, *, existing: bool = True) -> None:
        """With `existing=False` the connections of now stay as they are: their network is gone for good."""
        self._apply(Faults(), existing)

    def _each(self, to_server: bool, to_client: bool, existing: bool, **change: Any) -> None:
        wanted = self._wanted
        server = replace(wanted.to_server, **change) if to_server else wanted.to_server
        client = replace(wanted.to_client, **change) if to_client else wanted.to_client
        self._apply(replace(wanted, to_server=server, to_client=client), existing)

    def _apply(self, faults: Faults, existing: bool = True) -> None:
        self._wanted = faults
        self.apply(faults, existing=existing)


class _Pipe:
    """One direction of one connection."""

    def __init__(self, way: Way, name: str) -> None:
        self._way = way
        self._name = name
        self._changed = asyncio.Event()
        self._blocks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)

    def change(self, way: Way) -> None:
        self._way = way
        self._changed.set()

    async def opened(self) -> None:
        while self._way.black_hole:
            await self._pause(None)

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fill(reader), name=f"{self._name} in")
            group.create_task(self._empty(writer), name=f"{self._name} out")

    async def _fill(self, reader: asyncio.StreamReader) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(_BLOCK)
            except OSError:
                data = b""
            await self._blocks.put((_now(), data))

    async def _empty(self, writer: asyncio.StreamWriter) -> None:
        while True:
            arrived, data = await self._blocks.get()
            await self.opened()
            while (left := arrived + self._way.delay - _now()) > 0:
                await self._pause(left)
                await self.opened()
            if not data:
                writer.close()
                return
            # To an end that is gone: its own end is told to the other one by the other direction.
            with contextlib.suppress(OSError):
                await self._write(writer, data)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while (rate := self._way.rate) is not None and data:
            piece = max(1, int(rate / 20))
            writer.write(data[:piece])
            await self._pause(len(data[:piece]) / rate)
            await self.opened()
            data = data[piece:]
        writer.write(data)
        await writer.drain()

    async def _pause(self, seconds: float | None) -> None:
        """So long, or until another fault is wanted."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()


class _Link:
    """One connection through the proxy."""

    def __init__(self, faults: Faults) -> None:
        self._to_server = _Pipe(faults.to_server, "to server")
        self._to_client = _Pipe(faults.to_client, "to client")
        self._writers: list[asyncio.StreamWriter] = []

    def change(self, faults: Faults) -> None:
        self._to_server.change(faults.to_server)
        self._to_client.change(faults.to_client)

    async def run(self, connection: socket.socket, connect: Callable[[], Awaitable[Streams]]) -> None:
        client = await asyncio.open_connection(sock=connection)
        self._writers.append(client[1])
        try:
            await self._to_server.opened()
            server = await connect()
            self._writers.append(server[1])
            async with asyncio.TaskGroup() as group:
                group.create_task(self._to_server.run(client[0], server[1]), name="to server")
                group.create_task(self._to_client.run(server[0], client[1]), name="to client")
        except OSError:
            pass  # no server
        finally:
            self.abort()

    def abort(self) -> None:
        for writer in self._writers:
            if not writer.is_closing():
                _reset_on_close(writer)
            writer.transport.abort()


class FaultProxy(Switches):
    """Listens on a port of 127.0.0.1; made by `fault_proxy`."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = _target(target)
        self._faults = Faults()
        self._links: dict[asyncio.Task[None], _Link] = {}
        # Bound and not listening: the port stays ours while new connections are refused.
        self._place = _bound(0)
        self._port: int = self._place.getsockname()[1]
        self._listener: socket.socket | None = None
        self.url = _through(target, self._port)
        self.apply(self._faults)

    @property
    def connections(self) -> int:
        return len(self._links)

    def redirect(self, target: str) -> None:
        """New connections go to the server of another URL, as after a failover."""
        self._target = _target(target)

    def cut(self) -> None:
        for task, link in self._links.items():
            link.abort()
            task.cancel()

    def apply(self, faults: Faults, *, existing: bool = True) -> None:
        self._faults = faults
        if existing:
            for link in self._links.values():
                link.change(faults)
        loop = asyncio.get_running_loop()
        if self._listener is not None and faults.refuse:
            loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        elif self._listener is None and not faults.refuse:
            self._listener = _bound(self._port)
            self._listener.listen(1024)
            loop.add_reader(self._listener, self._accept, self._listener)

    async def close(self) -> None:
        self.refuse()
        tasks = list(self._links)
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._place.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # it has gone again
        link = _Link(self._faults)
        task = asyncio.create_task(link.run(client, self._connect), name="fault proxy link")
        self._links[task] = link
        task.add_done_callback(self._links.pop)

    async def _connect(self) -> Streams:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)


class ProxyProcess(Switches):
    """The same in a process of its own; made by `proxy_process`. A fault is there when its method returns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__()
        self._process = process
        self.url = self._answer()

    def cut(self) -> None:
        self._ask({"cut": True})

    def apply(self, faults: Faults, *, existing: bool = True) -> None:
        self._ask({"faults": asdict(faults), "existing": existing})

    def _ask(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the fault proxy has ended"
        return line


@asynccontextmanager
async def fault_proxy(url: str) -> AsyncGenerator[FaultProxy, None]:
    """In front of the Postgres, Redis or Valkey of a URL, on a Unix socket or a port."""
    proxy = FaultProxy(url)
    try:
        yield proxy
    finally:
        await proxy.close()


@contextmanager
def proxy_process(url: str) -> Generator[ProxyProcess]:
    """It ends with this process, too."""
    command = [sys.executable, "-m", "tests.support.fault_proxy", url]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield ProxyProcess(process)
        finally:
            process.kill()


async def _serve(url: str) -> None:
    """Commands on stdin, a line each, until its end; the URL and a line for each command on stdout."""
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with fault_proxy(url) as proxy:
        sys.stdout.write(f"{proxy.url}\n")
        sys.stdout.flush()
        while line := await commands.readline():
            command = json.loads(line)
            if "cut" in command:
                proxy.cut()
            else:
                proxy.apply(_faults(command["faults"]), existing=command["existing"])
            sys.stdout.write("done\n")
            sys.stdout.flush()


def _faults(values: dict[str, Any]) -> Faults:
    ways = {name: Way(**values[name]) for name in ("to_server", "to_client")}
    return Faults(refuse=values["refuse"], **ways)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setblocking(False)
    bound.bind(("127.0.0.1", port))
    return bound


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _target(url: str) -> str | tuple[str, int]:
    """The path of a Unix socket, or a host and a port."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path)
    port = parts.port or (6379 if parts.scheme.startswith("redis") else 5432)
    host = dict(parse_qsl(parts.query)).get("host", parts.hostname or "127.0.0.1")
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


def _through(url: str, port: int) -> str:
    """User, password, database and options stay."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    scheme, path = parts.scheme, parts.path
    if scheme == "unix":
        scheme, path = "redis", f"/{options.pop('db', '0')}"
    options.pop("host", None)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit((scheme, f"{user}{at}127.0.0.1:{port}", path, urlencode(options), ""))


def _now() -> float:
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
