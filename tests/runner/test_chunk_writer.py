"""The chunks of one turn, with a store that tells what it was given."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from psycopg.errors import DiskFull

from entityq.address import Address
from entityq.batching import BatcherClosed
from entityq.chunk import Chunk, decode_chunk, is_chunk
from entityq.codec import Limits
from entityq.envelope import Envelope
from entityq.errors import MalformedMessage, PayloadTooLarge
from entityq.reply import Outcome, Reply
from entityq.runner.chunk_writer import Bounds, ChunksLost, ChunkWriter, StreamPorts
from entityq.runner.chunks import NewChunks, Progress
from entityq.runner.commit import Tenure
from entityq.runner.request import Request
from entityq.schema import ValueSchema
from tests.support.waiting import eventually_async

LIMITS = Limits()
NEVER = 1e6


def new_request() -> Request:
    envelope = Envelope(
        request_id=7, address=Address("Printer", "a"), message="count", payload=b"", persisted=True, client=1
    )
    return Request(envelope, 1, 1, None)


@dataclass
class Table:
    """`gate`: statements wait for it. `fails`: what the next one raises."""

    stored: list[int] = field(default_factory=list[int])
    told: list[int] = field(default_factory=list[int])
    statements: int = 0
    acknowledged: int = 0
    looks: int = 0
    waits: int = 0
    fails: BaseException | None = None
    answered: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def store(self, new: NewChunks) -> bool:
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.statements += 1
        self.stored += [chunk.number for chunk in new.chunks]
        return not self.answered

    async def progress(self, request_id: int) -> Progress:
        assert request_id == 7
        self.looks += 1
        last = Chunk(self.stored[-1], b"\x05") if self.stored else None
        return Progress(last, self.acknowledged)

    def tell(self, request: Request, chunks: Sequence[Chunk]) -> None:
        assert request.request_id == 7
        self.told += [chunk.number for chunk in chunks]

    @contextmanager
    def waiting(self, request: Request) -> Generator[None]:
        del request
        self.waits += 1
        yield

    async def held(self, number: int) -> None:
        """Until so many are stored, and everything that can go on has gone on."""

        async def stored() -> bool:
            return len(self.stored) >= number

        await eventually_async(stored, 5.0, f"{number} stored")
        for _ in range(20):
            await asyncio.sleep(0)

    def writer(self, **bounds: float) -> ChunkWriter:
        ports = StreamPorts(self.store, self.progress, self.tell, self.waiting)
        limits = Bounds(**{"patience": NEVER, **bounds})  # type: ignore[arg-type] # numbers of both kinds
        schema = ValueSchema(int, "chunk")
        return ChunkWriter(ports, new_request(), Tenure(1, 1, 1), schema=schema, limits=LIMITS, bounds=limits)


@pytest.fixture
def table() -> Table:
    table = Table()
    table.gate.set()
    return table


async def numbers(n: int) -> AsyncGenerator[int, None]:
    for number in range(n):
        yield number


def test_a_chunk_is_told_from_a_reply() -> None:
    chunk = Chunk(300, b"abc")
    assert decode_chunk(chunk.encode()) == chunk
    assert chunk.encode() == b"\x93\x01\xcd\x01\x2c\xc4\x03abc"
    assert is_chunk(chunk.encode())
    assert not is_chunk(Reply(1, Outcome.SUCCESS, "", b"").encode())
    with pytest.raises(MalformedMessage):
        decode_chunk(b"\x93\x01\x01\x01")


async def test_what_is_yielded_during_a_statement_goes_with_the_next(table: Table) -> None:
    table.gate.clear()
    collecting = asyncio.create_task(table.writer().collect(numbers(50)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert table.told == []
    table.gate.set()
    assert await collecting == 50
    assert table.stored == table.told == list(range(1, 51))
    assert table.statements <= 3


async def test_the_handler_waits_for_who_reads(table: Table) -> None:
    writer = table.writer(ahead=10)
    await writer.begin()
    yielded: list[int] = []

    async def watched() -> AsyncGenerator[int, None]:
        for number in range(30):
            yielded.append(number)
            yield number

    collecting = asyncio.create_task(writer.collect(watched()))
    for acknowledged, most in ((0, 10), (4, 14), (14, 24)):
        writer.acknowledged(acknowledged)
        await table.held(most)
        assert len(yielded) == most
    writer.acknowledged(30)
    assert await collecting == 30
    assert table.waits >= 3


async def test_a_value_is_as_large_as_many(table: Table) -> None:
    writer = table.writer(ahead_bytes=10)
    collecting = asyncio.create_task(writer.collect(numbers(25)))
    for acknowledged in (10, 20):
        await table.held(acknowledged)
        assert len(table.stored) == acknowledged
        writer.acknowledged(acknowledged)
    assert await collecting == 25


async def test_where_nobody_reads_it_goes_on_after_a_while(table: Table) -> None:
    """Once: not at each further value."""
    assert await table.writer(ahead=10, patience=0.01).collect(numbers(500)) == 500
    assert table.looks == 1


async def test_an_acknowledgement_that_was_not_heard_is_read(table: Table) -> None:
    writer = table.writer(ahead=10, patience=0.01)
    table.acknowledged = 495
    assert await writer.collect(numbers(500)) == 500
    assert table.looks == 1


async def test_the_next_attempt_goes_on_from_what_is_stored(table: Table) -> None:
    table.stored, table.acknowledged = [1, 2, 3], 3
    writer = table.writer(ahead=3)
    await writer.begin()
    assert writer.last == 5
    assert await writer.collect(numbers(2)) == 5
    assert table.told == [4, 5]


async def test_there_is_a_greatest_number_of_values(table: Table) -> None:
    with pytest.raises(PayloadTooLarge, match="more than 20 values"):
        await table.writer(chunks=20).collect(numbers(30))
    assert table.stored == list(range(1, 21))


@pytest.mark.parametrize("error", [DiskFull("full"), BatcherClosed(started=True)])
async def test_what_cannot_be_stored_ends_the_handler(table: Table, error: BaseException) -> None:
    """Also one that yields nothing more, and none of it is told."""
    table.fails = error
    ended = asyncio.Event()

    async def handler() -> AsyncGenerator[int, None]:
        try:
            for number in range(1_000):
                yield number
                await asyncio.sleep(0)
        finally:
            ended.set()

    with pytest.raises(ChunksLost) as lost:
        await table.writer().collect(handler())
    assert lost.value.reason is error
    assert ended.is_set()
    with pytest.raises(ChunksLost):
        await table.writer().collect(numbers(1))
    assert table.told == []


async def test_an_answered_request_gets_no_values(table: Table) -> None:
    table.answered = True
    with pytest.raises(ChunksLost, match="answered"):
        await table.writer().collect(numbers(3))
    assert table.told == []


async def test_what_was_yielded_before_an_error_is_stored(table: Table) -> None:
    async def handler() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await table.writer().collect(handler())
    assert table.told == [1, 2]
