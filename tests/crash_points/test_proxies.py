"""What passes is named rightly, and what is held, cut or lost is exactly what the name says."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

import pytest
from psycopg import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from entityq.postgres.connect import Connection, connect
from entityq.postgres.queries import load
from entityq.redis.connect import open_client
from tests.crash_points import resp
from tests.crash_points.gate import Armed, Gate
from tests.crash_points.point import Phase, Point
from tests.crash_points.postgres_proxy import PostgresLink
from tests.crash_points.proxy import Proxy
from tests.crash_points.redis_proxy import RedisLink, step_of
from tests.crash_points.statements import load_names, name_of, normalised
from tests.support.servers import SCHEMA

POSITION = load("outbox.sql")["read_position"]


async def cut() -> bool:
    return False


def arm(gate: Gate, server: str, step: str, phase: Phase) -> Armed:
    armed = Armed(Point("r", server, step, phase), 1, cut)
    gate.watch()
    gate.arm(armed)
    return armed


@asynccontextmanager
async def through_postgres(gate: Gate, url: str, directory: Path) -> AsyncGenerator[Connection]:
    socket = ".s.PGSQL.5432"
    target = Path(parse_qs(urlsplit(url).query)["host"][0]) / socket
    proxy = Proxy(target, lambda: PostgresLink(gate, "postgres", load_names()))
    await proxy.listen(directory / socket)
    changed = urlunsplit(urlsplit(url)._replace(query=f"host={quote(str(directory))}"))
    try:
        async with await connect(changed, schema=SCHEMA) as connection:
            yield connection
    finally:
        await proxy.close()


def steps(trace: list[Point]) -> list[tuple[str, str]]:
    return [(point.phase, point.step) for point in trace]


async def test_statements_have_the_names_of_their_files(postgres_url: str, tmp_path: Path) -> None:
    gate = Gate("r")
    gate.watch()
    async with through_postgres(gate, postgres_url, tmp_path) as connection:
        for _ in range(2):
            await connection.execute(POSITION)
        await connection.execute(load("outbox.sql")["notify_unpublished"], {"channel": "a", "payload": "b"})
        await connection.execute(b"LISTEN something", prepare=False)
    both: list[Phase] = ["before", "after"]
    names = [
        "connect",
        "session.apply_settings",
        "prepare outbox.read_position",
        "outbox.read_position",
        "outbox.read_position",
        "prepare outbox.notify_unpublished",
        "outbox.notify_unpublished",
        "LISTEN",
    ]
    assert steps(gate.unwatch()) == [(phase, name) for name in names for phase in both]


@pytest.mark.parametrize(("phase", "done"), [("before", False), ("after", True)])
async def test_a_statement_is_lost_before_or_after_it_was_done(
    postgres_url: str, tmp_path: Path, phase: Phase, done: bool
) -> None:
    gate = Gate("r")
    async with through_postgres(gate, postgres_url, tmp_path) as connection:
        armed = arm(gate, "postgres", "CREATE TABLE", phase)
        with pytest.raises(OperationalError):
            await connection.execute(b"CREATE TABLE evidence ()", prepare=False)
        assert armed.reached
    async with await connect(postgres_url, schema=SCHEMA) as direct:
        row = await (await direct.execute(b"SELECT to_regclass('evidence') IS NOT NULL")).fetchone()
    assert row == (done,)


@pytest.mark.parametrize(("phase", "done"), [("before", [b"1", None]), ("after", [b"1", b"2"])])
async def test_a_command_in_the_middle_of_a_pipeline_is_lost(
    redis_url: str, tmp_path: Path, phase: Phase, done: list[bytes | None]
) -> None:
    gate = Gate("r")
    proxy = Proxy(Path(unquote(urlsplit(redis_url).path)), lambda: RedisLink(gate, "redis"))
    await proxy.listen(tmp_path / "redis")
    async with open_client(f"unix://{tmp_path}/redis") as redis, open_client(redis_url) as direct:
        pipeline = redis.pipeline(transaction=False)
        pipeline.set("first", "1")
        pipeline.set("eq:{n}:control", "2")
        armed = arm(gate, "redis", "SET control", phase)
        with pytest.raises(RedisConnectionError):
            await pipeline.execute()
        assert armed.reached
        assert await direct.mget("first", "eq:{n}:control") == done
    await proxy.close()


async def test_a_fault_ends_what_it_began_when_its_connection_ends_first() -> None:
    gate, began, allowed, ended = Gate("r"), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def act() -> bool:
        began.set()
        await allowed.wait()
        ended.set()
        return False

    gate.watch()
    gate.arm(Armed(Point("r", "redis", "PING", "before"), 1, act))
    passing = asyncio.create_task(gate.reach("redis", "PING", "before"))
    await began.wait()
    passing.cancel()
    await asyncio.wait([passing])
    allowed.set()
    async with asyncio.timeout(5):
        await ended.wait()


def test_names_of_statements() -> None:
    names = {normalised(b"SELECT %(a)b,\n  %(b)s %% 2"): "file.query"}
    assert name_of(b"SELECT $1, $2 % 2", names) == "file.query"
    assert name_of(b"SELECT $1, $2 % 3", names) == "SELECT"
    assert name_of(b'LISTEN "channel"', names) == "LISTEN"


@pytest.mark.parametrize(
    ("command", "step"),
    [
        (
            [b"XADD", b"eq:{n}:stream:default:3", b"MAXLEN", b"~", b"5", b"*", b"e", b"eq:{n}:reply:1"],
            "XADD stream",
        ),
        ([b"PUBLISH", b"eq:{n}:reply:7", b"x"], "PUBLISH reply"),
        ([b"XGROUP", b"CREATE", b"eq:{n}:wake:1", b"runner"], "XGROUP CREATE wake"),
        (
            [b"XREADGROUP", b"STREAMS", b"eq:{n}:stream:d:3", b"eq:{n}:wake:1", b">", b">"],
            "XREADGROUP stream",
        ),
        ([b"XREADGROUP", b"STREAMS", b"eq:{n}:wake:1", b"0"], "XREADGROUP own pending wake"),
        ([b"INFO"], "INFO"),
    ],
)
def test_names_of_commands(command: list[bytes], step: str) -> None:
    assert step_of(command) == step


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"+OK\r\n", b"OK"),
        (b"-ERR no\r\n", b"ERR no"),
        (b":12\r\n", 12),
        (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*2\r\n:1\r\n*1\r\n$1\r\na\r\n", [1, [b"a"]]),
    ],
)
def test_resp_is_parsed_when_all_of_it_is_there(data: bytes, value: resp.Value) -> None:
    assert resp.parse(b"junk" + data + b"more", 4) == (value, 4 + len(data))
    assert all(resp.parse(data[:end]) is None for end in range(len(data)))
