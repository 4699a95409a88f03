"""Real processes whose every connection goes through proxies of their own."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

from tests.crash_points.gate import Gate
from tests.crash_points.postgres_proxy import PostgresLink
from tests.crash_points.proxy import Proxy
from tests.crash_points.redis_proxy import RedisLink
from tests.crash_points.reporting import LINE_LIMIT
from tests.crash_points.statements import load_names
from tests.support.processes import ROOT

PATIENCE = 20.0
_POSTGRES_SOCKET = ".s.PGSQL.5432"


@dataclass(eq=False)
class Child:
    """A process: what it has reported, and what a test does to it."""

    name: str
    gate: Gate
    directory: Path
    proxies: list[Proxy]
    pid: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.StreamWriter | None = None
    draining: bool = False
    paused: bool = False

    @property
    def useful(self) -> bool:
        """As a runner: whether it is there, and going to stay."""
        return not (self.gone.is_set() or self.draining or self.paused)

    def kill(self) -> None:
        # Its id is not given to another process before the zygote has reaped it, at its next order.
        if not self.gone.is_set():
            os.kill(self.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        if not self.gone.is_set():
            os.kill(self.pid, number)

    def order(self, **fields: object) -> None:
        assert self.writer is not None
        self.writer.write(json.dumps(fields).encode() + b"\n")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [report for report in self.reports if report["kind"] == kind]

    async def until(
        self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE, *, or_gone: bool = False
    ) -> bool:
        """Waits for reports; False when the process has gone instead (an error unless `or_gone`)."""
        async with asyncio.timeout(seconds):
            while not condition():
                if self.gone.is_set():
                    assert or_gone, f"{self.name} ended before {what}\n{self.log}"
                    return False
                self.heard.clear()
                await self.heard.wait()
        return True

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-4_000:]


class Processes:
    """Starts processes, listens to them, and ends all of them."""

    def __init__(self, servers: Mapping[str, str], directory: Path, zygote: Process) -> None:
        """`servers`: addresses of "postgres" and "redis", and the "namespace"."""
        self._servers = servers
        self._directory = directory
        self._zygote = zygote
        self._names = load_names()
        self._children: dict[str, Child] = {}
        self._forking = asyncio.Lock()
        self._count = 0

    @property
    def all(self) -> list[Child]:
        return list(self._children.values())

    async def start(self, program: str, role: str, settings: Mapping[str, str]) -> Child:
        """Returns when it is ready."""
        self._count += 1
        name = f"{program}-{self._count}"
        directory = self._directory / str(self._count)
        directory.mkdir()
        child = Child(name, Gate(role), directory, [])
        self._children[name] = child
        environment = {**settings, **await self._listen(child)}
        report_to = directory / "reports"
        server = await asyncio.start_unix_server(
            lambda reader, writer: self._hear(child, reader, writer), str(report_to), limit=LINE_LIMIT
        )
        order = {
            "program": program,
            "report_to": str(report_to),
            "environment": environment,
            "log": str(directory / "log"),
        }
        async with self._forking:
            assert self._zygote.stdin is not None
            assert self._zygote.stdout is not None
            self._zygote.stdin.write(json.dumps(order).encode() + b"\n")
            child.pid = int(await self._zygote.stdout.readline())
        await child.until(lambda: bool(child.of_kind("ready")), "it was ready")
        server.close()
        return child

    async def _listen(self, child: Child) -> dict[str, str]:
        """Its proxies; returns the settings that lead through them."""
        postgres, redis = self._servers["postgres"], self._servers["redis"]
        target = Path(parse_qs(urlsplit(postgres).query)["host"][0]) / _POSTGRES_SOCKET
        environment = {"ENTITYQ_NAMESPACE": self._servers["namespace"]}
        for server in ("postgres", "lease"):
            place = child.directory / server
            place.mkdir()
            await self._add_proxy(child, target, place / _POSTGRES_SOCKET, server)
            url = urlunsplit(urlsplit(postgres)._replace(query=f"host={quote(str(place))}"))
            environment[f"ENTITYQ_{server.upper()}_URL"] = url
        place = child.directory / "redis"
        await self._add_proxy(child, Path(unquote(urlsplit(redis).path)), place, "redis")
        return {**environment, "ENTITYQ_REDIS_URL": f"unix://{place}"}

    async def _add_proxy(self, child: Child, target: Path, place: Path, server: str) -> None:
        def new_link() -> RedisLink | PostgresLink:
            if server == "redis":
                return RedisLink(child.gate, server)
            return PostgresLink(child.gate, server, self._names)

        proxy = Proxy(target, new_link)
        await proxy.listen(place)
        child.proxies.append(proxy)

    async def _hear(self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        child.writer = writer
        try:
            with suppress(OSError):
                while line := await reader.readline():
                    child.reports.append(json.loads(line))
                    child.heard.set()
        finally:
            child.gone.set()
            child.heard.set()
            writer.close()

    async def end(self, child: Child) -> None:
        """Kills it if it still lives, and takes its proxies away."""
        child.kill()
        async with asyncio.timeout(PATIENCE):
            await child.gone.wait()
        for proxy in child.proxies:
            await proxy.close()
        self._children.pop(child.name, None)

    async def close(self) -> None:
        for child in self.all:
            await self.end(child)


@asynccontextmanager
async def open_processes(servers: Mapping[str, str], directory: Path) -> AsyncGenerator[Processes]:
    zygote = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash_points.zygote", stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end_zygote, zygote)
        processes = Processes(servers, directory, zygote)
        stack.push_async_callback(processes.close)
        yield processes


async def _end_zygote(zygote: Process) -> None:
    assert zygote.stdin is not None
    zygote.stdin.close()
    async with asyncio.timeout(PATIENCE):
        await zygote.wait()
