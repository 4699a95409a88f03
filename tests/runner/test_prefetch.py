import asyncio
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from entityq.runner.prefetch import Prefetch, Room


async def is_open(prefetch: Prefetch) -> bool:
    waiting = asyncio.ensure_future(prefetch.room())
    await asyncio.sleep(0)
    done = waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    return done


async def test_reading_stops_at_the_limit_and_goes_on_at_half() -> None:
    prefetch = Prefetch(4)
    for _ in range(3):
        prefetch.add()
    assert await is_open(prefetch)
    prefetch.add()
    assert not await is_open(prefetch)
    prefetch.remove()
    assert not await is_open(prefetch)
    prefetch.remove()
    assert await is_open(prefetch)
    assert len(prefetch) == 2


async def test_what_waits_behind_a_waiting_turn_does_not_stop_reading() -> None:
    prefetch = Prefetch(4)
    for _ in range(4):
        prefetch.add()
    with prefetch.lent(4):
        assert await is_open(prefetch)
    assert not await is_open(prefetch)


async def test_readers_that_read_at_once_share_the_room() -> None:
    prefetch = Prefetch(4)
    prefetch.add()
    async with prefetch.reserved(3) as first:
        assert await is_open(prefetch)
        async with prefetch.reserved(3) as second:
            assert (first, second) == (2, 1)
            assert not await is_open(prefetch)
        assert await is_open(prefetch)
    assert len(prefetch) == 1


async def test_what_was_reserved_and_not_used_closes_nothing() -> None:
    """More than half is used, but it never was full."""
    prefetch = Prefetch(10)
    prefetch.add(6)
    async with prefetch.reserved(5) as places:
        assert places == 4
        assert not await is_open(prefetch)
    assert await is_open(prefetch)


async def test_all_that_wait_have_their_turn() -> None:
    """Reads of streams and of the outbox, with turns that end one at a time."""
    prefetch = Prefetch(5)
    running: deque[int] = deque()

    async def read_stream() -> None:
        for _ in range(20):
            await prefetch.room()
            await asyncio.sleep(0)
            prefetch.add(3)
            running.append(3)

    async def read_outbox() -> None:
        for _ in range(20):
            async with prefetch.reserved(4) as places:
                await asyncio.sleep(0)
                prefetch.add(places)
                running.append(places)

    async def answer() -> None:
        while True:
            while running:
                prefetch.remove(running.popleft())
            await asyncio.sleep(0)

    answering = asyncio.create_task(answer())
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(read_stream())
            group.create_task(read_outbox())
    answering.cancel()
    await asyncio.wait([answering])


class RoomMachine(RuleBasedStateMachine):
    """Whoever reads adds what it found, however much; turns end, and lend what they hold."""

    @initialize(limit=st.integers(1, 12))
    def start(self, limit: int) -> None:
        self.room = Room(limit)
        self.running = 0
        self.lent: list[int] = []
        self.reservations: list[int] = []

    @rule(count=st.integers(1, 15))
    def deliver(self, count: int) -> None:
        self.room.use(count)
        self.running += count

    @precondition(lambda self: self.running > 0)
    @rule(data=st.data())
    def end_turns(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.running))
        self.room.use(-count)
        self.running -= count

    @rule(places=st.integers(1, 20))
    def lend(self, places: int) -> None:
        self.room.use(-places)
        self.lent.append(places)

    @precondition(lambda self: self.lent)
    @rule()
    def take_back(self) -> None:
        self.room.use(self.lent.pop())

    @precondition(lambda self: self.room.open)
    @rule(most=st.integers(1, 20))
    def reserve(self, most: int) -> None:
        places = self.room.reserve(most)
        assert 1 <= places <= min(most, max(1, self.room.limit // 2))
        assert self.room.used + self.room.reserved <= self.room.limit
        self.reservations.append(places)

    @precondition(lambda self: self.reservations)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.reservations) - 1))
        self.room.release(self.reservations.pop(index))

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "room"):
            assert self.room.used == self.running - sum(self.lent)
            assert self.room.reserved == sum(self.reservations)

    @invariant()
    def stops_at_the_limit_and_goes_on_at_half(self) -> None:
        if hasattr(self, "room"):
            room = self.room
            if room.used >= room.limit:
                assert not room.open
            if room.used <= room.limit // 2:
                assert not room.full
                # One reservation, however big, leaves room for who reads meanwhile.
                assert room.open or len(self.reservations) > 1 or room.used + room.reserved == room.limit

    def teardown(self) -> None:
        """Once the turns have ended and the reads have come back there is room again."""
        if hasattr(self, "room"):
            while self.lent:
                self.take_back()
            self.room.use(-self.running)
            for places in self.reservations:
                self.room.release(places)
            assert self.room.open
            assert self.room == Room(self.room.limit)


TestRoom = RoomMachine.TestCase
TestRoom.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
