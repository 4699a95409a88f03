"""Who judges whom, and what becomes of a judgement."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import OperationalError

from entityq.postgres.membership import Member
from entityq.runner.health import Health, Judgement, judged_by
from entityq.runner.tasks import end
from tests.support.waiting import eventually_async


def member(incarnation: int, *, healthy: bool = True, draining: bool = False) -> Member:
    return Member(
        incarnation=incarnation,
        number=incarnation,
        name=f"r{incarnation}",
        pid=incarnation,
        groups=frozenset(),
        types=frozenset(),
        weight=1.0,
        draining=draining,
        groups_of_types=(),
        host=f"host-{incarnation}",
        healthy=healthy,
    )


def judged(me: int, *members: Member) -> list[int]:
    return [peer.incarnation for peer in judged_by(me, members)]


# ----- who judges whom


def test_each_runner_judges_the_next_one() -> None:
    ring = [member(5), member(2), member(9)]
    assert [judged(me, *ring) for me in (2, 5, 9)] == [[5], [9], [2]]


def test_alone_one_judges_nobody() -> None:
    assert judged(1, member(1)) == []
    assert judged(1, member(1, healthy=False)) == []
    assert judged(1) == []


def test_an_unhealthy_runner_judges_nobody_and_its_own_peer_has_another_judge() -> None:
    ring = [member(1), member(2, healthy=False), member(3)]
    assert [judged(me, *ring) for me in (1, 2, 3)] == [[2, 3], [], [1]]


def test_where_all_are_unhealthy_each_judges_the_next_one() -> None:
    ring = [member(number, healthy=False) for number in (1, 2, 3)]
    assert [judged(me, *ring) for me in (1, 2, 3)] == [[2], [3], [1]]


def test_runners_that_leave_are_out_of_it() -> None:
    ring = [member(1), member(2, draining=True), member(3, healthy=False, draining=True), member(4)]
    assert [judged(me, *ring) for me in (1, 2, 3, 4)] == [[4], [], [], [1]]


@given(st.dictionaries(st.integers(0, 30), st.tuples(st.booleans(), st.booleans()), max_size=8))
def test_everybody_has_one_judge_that_is_healthy_if_anybody_is(
    runners: dict[int, tuple[bool, bool]],
) -> None:
    members = [
        member(number, healthy=healthy, draining=draining) for number, (healthy, draining) in runners.items()
    ]
    staying = {one.incarnation: one.healthy for one in members if not one.draining}
    judges = {number: [me for me in runners if number in judged(me, *members)] for number in runners}
    for number, found in judges.items():
        others = {other: healthy for other, healthy in staying.items() if other != number}
        if number not in staying or not others or (staying[number] and not any(others.values())):
            # Who is the only healthy one has nobody to judge it.
            assert found == []
            continue
        (judge,) = found
        assert staying[judge] or not any(others.values())


# ----- what becomes of it


@dataclass
class Script:
    """A health check that says what the test tells it to."""

    judgements: dict[int, Judgement] = field(default_factory=dict[int, Judgement])
    looks: int = 0

    def pause(self, runners: int) -> float:
        return 0.001 * runners

    async def look(self, peers: Sequence[Member]) -> Mapping[int, Judgement]:
        self.looks += 1
        return {peer.incarnation: self.judgements[peer.incarnation] for peer in peers if self.judgements}


@dataclass
class Table:
    """The rows of a cluster of 1 and 2; `down`: writes fail."""

    members: list[Member] = field(default_factory=lambda: [member(1), member(2)])
    writes: list[tuple[int, bool]] = field(default_factory=list[tuple[int, bool]])
    down: bool = False

    async def record(self, incarnation: int, *, healthy: bool) -> bool:
        if self.down:
            raise OperationalError("the server is away")
        self.writes.append((incarnation, healthy))
        changed = [
            replace(one, healthy=healthy) if one.incarnation == incarnation else one for one in self.members
        ]
        before, self.members = self.members, changed
        return changed != before


async def looks(script: Script, count: int = 3) -> None:
    wanted = script.looks + count

    async def looked() -> bool:
        return script.looks >= wanted

    await eventually_async(looked, 5, "more looks")


async def test_what_changes_is_recorded_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script, table = Script(), Table()
    running = asyncio.create_task(Health(1, script, table, lambda: table.members).run())
    try:
        await looks(script)  # no judgement
        script.judgements = {2: Judgement(healthy=True)}
        await looks(script)
        assert table.writes == []
        script.judgements = {2: Judgement(healthy=False, reason="it is asleep")}
        await looks(script)
        script.judgements = {}
        await looks(script)
        assert table.writes == [(2, False)]
        script.judgements = {2: Judgement(healthy=True)}
        await looks(script)
        assert table.writes == [(2, False), (2, True)]
    finally:
        await end(running)
    first, second = caplog.messages
    assert first.startswith("runner.unhealthy name=r2 host=host-2 incarnation=2: it is asleep; ")
    assert second.startswith("runner.healthy_again name=r2 host=host-2 incarnation=2: ")


async def test_what_another_judge_has_recorded_already_is_not_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script, table = Script({2: Judgement(healthy=False, reason="it is asleep")}), Table()
    seen = table.members  # and not looked at again
    table.members = [member(1), member(2, healthy=False)]
    running = asyncio.create_task(Health(1, script, table, lambda: seen).run())
    try:
        await looks(script)
        assert set(table.writes) == {(2, False)}
    finally:
        await end(running)
    assert caplog.messages == []


async def test_what_cannot_be_recorded_is_tried_again() -> None:
    script, table = Script({2: Judgement(healthy=False, reason="it is asleep")}), Table(down=True)
    running = asyncio.create_task(Health(1, script, table, lambda: table.members).run())
    try:
        await looks(script)
        assert not running.done()
        table.down = False
        await looks(script)
        assert table.writes == [(2, False)]
    finally:
        await end(running)
