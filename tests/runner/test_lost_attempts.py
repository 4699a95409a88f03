"""Who is blamed when processes end: a simulation of the rule, and takeovers that apply it."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq import EntityDefect, Receipt, RetryPolicy, message
from entityq.postgres.lease_session import SUSPECT
from entityq.runner.attempts import MAX_ATTEMPTS, counts, exhausted, suspected
from tests.support.live import LiveCluster, soon
from tests.support.probe import Probe
from tests.support.stage import Actor

# ----- the rule


@dataclass(eq=False)
class Head:
    """The oldest request of an entity, as the outbox has it, and what it does when it runs."""

    culprit: bool
    lost: int = 0
    started: int | None = None


class Simulation:
    """One runner after the other. Of those that are not suspected all run at once, of the suspects one at a time."""

    def __init__(self, heads: list[Head]) -> None:
        self.heads = heads
        self.given_up: list[Head] = []
        self.incarnation = 1

    def trial(self) -> Head | None:
        """The next suspect begins its turn."""
        suspect = next((head for head in self.heads if suspected(head.lost)), None)
        if suspect is not None:
            suspect.started = self.incarnation
        return suspect

    def answer(self, head: Head) -> None:
        assert not head.culprit
        self.heads.remove(head)

    def crash(self) -> None:
        for head in self.heads:
            if counts(head.lost, started=head.started, ended=self.incarnation):
                head.lost += 1
        self.given_up += [head for head in self.heads if exhausted(head.lost)]
        self.heads = [head for head in self.heads if not exhausted(head.lost)]
        self.incarnation += 1


@given(
    culprits=st.lists(st.booleans(), min_size=1, max_size=12),
    data=st.data(),
)
def test_only_culprits_are_given_up(culprits: list[bool], data: st.DataObject) -> None:
    """Kills from outside come too; but not in the very turn of an innocent suspect, which is then indistinguishable."""
    simulation = Simulation([Head(culprit) for culprit in culprits])
    for step in itertools.count():
        if not simulation.heads or step > 100:
            break
        # Before the culprits' turns have come to where they end the process.
        free = [head for head in simulation.heads if not head.culprit and not suspected(head.lost)]
        for head in data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []:
            simulation.answer(head)
        if data.draw(st.booleans(), label="killed from outside") and step < 20:
            simulation.crash()
            continue
        if any(head.culprit and not suspected(head.lost) for head in simulation.heads):
            simulation.crash()
            continue
        suspect = simulation.trial()
        if suspect is None:
            for head in list(simulation.heads):
                simulation.answer(head)
        elif suspect.culprit:
            simulation.crash()
        else:
            simulation.answer(suspect)
    assert all(head.culprit for head in simulation.given_up)
    assert sum(culprits) == len(simulation.given_up)
    assert simulation.heads == []


def test_one_crash_says_nothing_two_are_suspicious_and_two_more_are_enough() -> None:
    assert [suspected(lost) for lost in range(4)] == [False, False, True, True]
    assert not exhausted(MAX_ATTEMPTS - 1)
    assert exhausted(MAX_ATTEMPTS)
    assert MAX_ATTEMPTS == 4


@pytest.mark.parametrize(
    ("lost", "started", "expected"),
    [(0, None, True), (1, None, True), (1, 6, True), (2, None, False), (2, 6, False), (2, 7, True)],
)
def test_a_suspect_is_counted_only_when_it_ran(lost: int, started: int | None, expected: int) -> None:
    assert counts(lost, started=started, ended=7) is bool(expected)


# ----- takeovers


async def lost_attempts(cluster: LiveCluster) -> dict[str, list[int]]:
    rows = await cluster.rows(
        "SELECT o.entity_id, p.attempts FROM pending p JOIN outbox o USING (request_id) ORDER BY p.seq"
    )
    found: dict[str, list[int]] = {}
    for entity_id, attempts in rows:
        found.setdefault(entity_id, []).append(attempts)
    return found


async def test_a_takeover_counts_the_oldest_request_of_each_entity(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    first = await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await probe.at(name).note.send(str(n), gate="g") for n in (1, 2) for name in "abc"]
    await cluster.stage.saw("note a 1", "note b 1", "note c 1")
    await cluster.crash(first)
    second = await cluster.start(app, "r2")
    assert await lost_attempts(cluster) == {name: [1, 0] for name in "abc"}
    # In order: nothing is counted.
    cluster.stage.open("g")
    assert [await receipt for receipt in receipts] == [1, 1, 1, 2, 2, 2]
    await cluster.stop(second)
    waiting = await probe.at("d").note.send("3")
    third = await cluster.start(app, "r3", shards=0)
    assert await waiting == 1
    await cluster.stop(third)
    assert await cluster.rows("SELECT count(*) FROM shard WHERE incarnation IS NOT NULL") == [0]


async def test_suspects_run_one_at_a_time_and_only_the_marked_one_is_counted(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipts = [await probe.at(name).note.send("1", gate="g") for name in "abcd"]
    await cluster.stage.saw(*(f"note {name} 1" for name in "abcd"))
    expected = dict.fromkeys("abcd", 0)
    crash = 0
    while max(expected.values()) < MAX_ATTEMPTS:
        crash += 1
        marked = await cluster.rows(
            "SELECT o.entity_id FROM pending p JOIN outbox o USING (request_id)"
            " WHERE p.started = (SELECT max(incarnation) FROM runner)"
        )
        for name in marked if crash > SUSPECT else expected:
            expected[name] += 1
        # As a process does that ends: without a word on its lease session.
        await cluster.rows("SELECT pg_terminate_backend(pid) FROM runner")
        await cluster.crash(member)
        cluster.stage.journal.clear()
        member = await cluster.start(app, f"r{crash}", shards=0)

        async def counted() -> bool:
            lost = {name: lost for name, (lost,) in (await lost_attempts(cluster)).items()}
            return lost == {name: lost for name, lost in expected.items() if lost < MAX_ATTEMPTS}

        await soon(counted, f"what crash {crash} has cost: {expected}")
        await cluster.stage.until(lambda: bool(cluster.stage.lines("note ")), "a turn")
        if crash >= SUSPECT:
            # Who is not suspected is not kept waiting by those that are.
            assert await probe.at(f"free {crash}").note("x") == 1
            assert len([line for line in cluster.stage.lines("note ") if "free" not in line]) == 1
    cluster.stage.open("g")
    outcomes = sorted([await _outcome(receipt) for receipt in receipts], key=str)
    given_up = [name for name, lost in expected.items() if lost == MAX_ATTEMPTS]
    assert outcomes == [1, 1, 1, *(f"Probe/{name} ended the processes of 4 runners" for name in given_up)]
    assert await cluster.rows("SELECT entity_id, attempts FROM dead_letter") == [(given_up[0], MAX_ATTEMPTS)]


async def _outcome(receipt: Receipt[int]) -> int | str:
    try:
        return await receipt
    except EntityDefect as defect:
        return defect.what.split(",")[0]


class Unlucky(Actor):
    @message
    async def try_it(self) -> int:
        attempt = self.context.attempt
        await self._stage.enter(f"try {attempt}", f"g{attempt}")
        if attempt == 2:
            raise ValueError
        return attempt


async def test_lost_attempts_and_failed_ones_are_one_count_for_the_handler(cluster: LiveCluster) -> None:
    app = cluster.app()
    quick = RetryPolicy(initial=0.01, maximum=0.01, factor=1.0, attempts=2)
    unlucky = cluster.actor(app, Unlucky, retry=quick).at("a")
    first = await cluster.start(app)
    cluster.stage.close("g1")
    receipt = await unlucky.try_it.send()
    await cluster.stage.saw("try 1")
    await cluster.crash(first)
    await cluster.start(app, "r2")
    # The second one fails, and is the first that counts for the policy.
    assert await receipt == 3
