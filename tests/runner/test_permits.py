"""Permits of the cluster as a model: never more than there are, whoever takes and gives back, and dies."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from entityq.runner.permits import POLL, QUANTUM, YIELD, Contention, Permits

COUNT = 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Locks:
    """Those of one class, in a server that many sessions share; as Postgres, it lets them stack."""

    def __init__(self) -> None:
        self.holders: dict[int, list[object]] = {}


class Session:
    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    async def execute(self, query: bytes, parameters: Mapping[str, Any] | None = None) -> Any:
        await asyncio.sleep(0)
        assert parameters is not None
        holders = self._locks.holders
        if b"pg_advisory_unlock" in query:
            for number in parameters["numbers"]:
                if self in holders.get(number, []):
                    holders[number].remove(self)
            return []
        got: list[tuple[int]] = []
        for number in range(1, parameters["count"] + 1):
            free = all(holder is self for holder in holders.get(number, []))
            if len(got) < parameters["wanted"] and number not in parameters["held"] and free:
                holders.setdefault(number, []).append(self)
                got.append((number,))
        return got

    def end(self) -> None:
        for holders in self._locks.holders.values():
            holders[:] = [holder for holder in holders if holder is not self]


class Others:
    def all_hear(self) -> bool:
        return True

    def exist(self) -> bool:
        return True

    def tell(self, word: str) -> None:
        del word


class Member:
    def __init__(self, locks: Locks, clock: Callable[[], float]) -> None:
        self.session = Session(locks)
        self.tasks: list[asyncio.Task[None]] = []
        self.permits = Permits(1, COUNT, self.session, Others(), start=self._start, clock=clock)
        self.running = 0

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(work, name=name))


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["take", "end", "unused", "rest", "wanted", "die"]),
        st.integers(1, 4),
        st.sampled_from([0.0, YIELD, QUANTUM, 1.0]),
    ),
    max_size=40,
)


@given(steps)
def test_never_more_run_than_there_are_permits_and_none_is_lost(
    steps: list[tuple[int, str, int, float]],
) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[tuple[int, str, int, float]]) -> None:
    clock = Clock()
    locks = Locks()
    members = [Member(locks, clock) for _ in range(3)]
    for place, what, count, pause in steps:
        clock.now += pause
        member = members[place]
        if what == "take":
            taken, wait = await member.permits.take(count)
            assert 0 <= taken <= count
            assert taken == count or wait >= POLL
            member.running += taken
        elif what in {"end", "unused"}:
            ended = min(count, member.running)
            member.running -= ended
            member.permits.give_back(ended, used=what == "end")
        elif what == "rest":
            member.permits.nobody_waits()
        elif what == "wanted":
            member.permits.hear("wanted")
        else:
            member.session.end()
            members[place] = Member(locks, clock)
        assert sum(each.running for each in members) <= COUNT
        assert all(len(holders) <= 1 for holders in locks.holders.values())
    for member in members:
        member.permits.give_back(member.running, used=True)
        member.permits.nobody_waits()
        await asyncio.gather(*member.tasks)
    assert not any(locks.holders.values())


def test_who_waits_gets_a_permit_after_a_quantum() -> None:
    contention = Contention()
    assert not contention.others_wait(1.0, all_hear=True, exist=True)
    assert contention.others_wait(1.0, all_hear=False, exist=True)
    assert not contention.others_wait(1.0, all_hear=False, exist=False)
    contention.heard = 1.0
    assert contention.others_wait(1.1, all_hear=True, exist=True)
    assert contention.keeps(1.0, 1.0, contended=True)
    assert not contention.keeps(1.0 + QUANTUM, 1.0, contended=True)
    assert contention.keeps(100.0, 1.0, contended=False)
