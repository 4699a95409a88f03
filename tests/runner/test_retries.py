"""Defects on a real cluster of one runner: tried again under their policy, then given up."""

from typing import Any, ClassVar

import pytest

from entityq import EntityDefect, Failure, RetryPolicy, message
from tests.support.live import LiveCluster, soon
from tests.support.stage import Actor

# Without a wait that a test would feel; `jitter` can make it 0.
QUICK = RetryPolicy(initial=0.02, factor=1.0, maximum=0.02, attempts=3)
# Longer than any test.
NEVER = RetryPolicy(initial=1e7, maximum=1e7, total=1e9, attempts=3)


class Empty(Failure):
    pass


class Flaky(Actor):
    """Fails for as long as the class says."""

    broken: ClassVar[set[str]] = set()
    written: list[str] = []
    _seen: int = 0

    @message
    async def write(self, text: str, gate: str = "") -> list[str]:
        self._seen += 1
        context = self.context
        await self._stage.enter(f"write {self.id} {text} {context.attempt} {self._seen}", gate)
        self.written.append(text)
        if text in self.broken:
            raise ValueError(f"secret of {text}") from KeyError("below")
        return self.written

    @message(concurrent=True)
    async def read(self, text: str) -> list[str]:
        self._stage.tell(f"read {self.id} {text} {self.context.attempt}")
        if text in self.broken:
            raise ValueError(text)
        return self.written

    @message(persisted=False)
    async def peek(self) -> list[str]:
        return self.written

    @message(persisted=False)
    async def fail_volatile(self) -> None:
        self._stage.tell(f"fail {self.id}")
        raise ValueError("volatile")

    @message
    async def empty(self) -> None:
        self._stage.tell(f"empty {self.id}")
        raise Empty

    @message(retry=RetryPolicy(attempts=1))
    async def once(self) -> None:
        self._stage.tell(f"once {self.id}")
        raise ValueError("once")

    @message
    async def too_large(self) -> str:
        self._stage.tell(f"too large {self.id}")
        return "x" * 10_000


@pytest.fixture(autouse=True)
def broken() -> set[str]:
    Flaky.broken.clear()
    return Flaky.broken


async def dead_letters(cluster: LiveCluster) -> list[Any]:
    return await cluster.rows(
        "SELECT request_id, type, entity_id, message, attempts, error_type, error, cause"
        " FROM dead_letter ORDER BY died_at"
    )


async def test_each_attempt_runs_on_a_fresh_activation_and_knows_its_number(
    cluster: LiveCluster, broken: set[str]
) -> None:
    app = cluster.app()
    flaky = cluster.actor(app, Flaky, retry=QUICK).at("a")
    await cluster.start(app)
    assert await flaky.write("first") == ["first"]
    broken.add("x")
    receipt = await flaky.write.send("x")
    await cluster.stage.saw("write a x 2 1")
    broken.clear()
    assert await receipt == ["first", "x"]
    assert cluster.stage.lines("write a ")[:3] == ["first 1 1", "x 1 2", "x 2 1"]
    assert await dead_letters(cluster) == []


async def test_after_the_last_attempt_it_is_a_dead_letter_with_its_cause(
    cluster: LiveCluster, broken: set[str]
) -> None:
    app = cluster.app()
    flaky = cluster.actor(app, Flaky, retry=QUICK).at("a")
    await cluster.start(app)
    broken.add("x")
    receipt = await flaky.write.send("x")
    with pytest.raises(EntityDefect, match="Flaky/a raised ValueError while handling 'write'") as defect:
        await receipt
    assert "secret" not in str(defect.value)
    assert [line[:3] for line in cluster.stage.lines("write a ")] == ["x 1", "x 2", "x 3"]
    ((request_id, *dead, cause),) = await dead_letters(cluster)
    assert request_id == receipt.request_id
    assert dead == ["Flaky", "a", "write", 3, "ValueError", "secret of x"]
    assert cause["message"] == "secret of x"
    assert cause["cause"]["type"] == "KeyError"
    assert "in write" in cause["traceback"][-1]
    assert await flaky.peek() == []
    assert await flaky.write("y") == ["y"]
    assert await cluster.pending() == 0


async def test_what_would_not_differ_is_not_tried_again(cluster: LiveCluster) -> None:
    app = cluster.app(max_reply=5_000)
    flaky = cluster.actor(app, Flaky, retry=NEVER).at("a")
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="PayloadTooLarge"):
        await flaky.too_large()
    with pytest.raises(EntityDefect, match="ValueError"):
        await flaky.once()
    with pytest.raises(Empty):
        await flaky.empty()
    with pytest.raises(EntityDefect, match="ValueError"):
        await flaky.fail_volatile()
    assert cluster.stage.journal == ["too large a", "once a", "empty a", "fail a"]
    assert [row[3] for row in await dead_letters(cluster)] == ["too_large", "once"]


async def test_what_is_behind_waits_and_neither_reads_nor_other_entities_do(
    cluster: LiveCluster, broken: set[str]
) -> None:
    app = cluster.app(max_turns=2, prefetch=8, max_resident=2)
    flaky = cluster.actor(app, Flaky, retry=NEVER)
    await cluster.start(app)
    broken.add("x")
    blocked = [await flaky.at(name).write.send(text) for name in "abcd" for text in ("x", "y", "z", "y")]
    for name in "abcd":
        await cluster.stage.saw(f"write {name} x 1 1")

    async def on_record() -> bool:
        rows = await cluster.rows("SELECT count(*) FROM pending WHERE retries = 1 AND resume_at > now()")
        return bool(rows[0] == 4)

    await soon(on_record, "four setbacks on record")
    # More than the runner has places for are in backoff, and none of them has one.
    for number in range(10):
        assert await flaky.at(f"other {number}").write("y") == ["y"]
    assert await flaky.at("a").peek() == []
    assert await flaky.at("a").read("r") == []
    assert len(cluster.stage.lines("write a ")) == 1
    assert len(blocked) == 16
    assert await cluster.pending() == 16


async def test_the_order_is_kept_and_the_count_too_when_the_owner_changes(
    cluster: LiveCluster, broken: set[str]
) -> None:
    app = cluster.app()
    flaky = cluster.actor(app, Flaky, retry=NEVER).at("a")
    first = await cluster.start(app)
    broken.add("x")
    receipts = [await flaky.write.send(text) for text in ("x", "y", "z")]
    await cluster.stage.saw("write a x 1 1")

    async def on_record() -> bool:
        rows = await cluster.rows("SELECT 1 FROM pending WHERE retries = 1")
        return bool(rows)

    await soon(on_record, "the setback on record")
    await cluster.stop(first)
    second = await cluster.start(app, "r2")
    broken.clear()
    later = await flaky.write.send("later")
    assert len(cluster.stage.lines("write a ")) == 1
    # As if its time had come: the owner that knew of the wait has gone, too.
    await cluster.stop(second)
    await cluster.rows("UPDATE pending SET resume_at = now() + interval '0.3 s' WHERE resume_at IS NOT NULL")
    await cluster.start(app, "r3")
    assert await later == ["x", "y", "z", "later"]
    assert [await receipt for receipt in receipts][-1] == ["x", "y", "z"]
    assert cluster.stage.lines("write a ")[1] == "x 2 1"


async def test_parked_it_lets_the_others_go_on_and_comes_back(cluster: LiveCluster, broken: set[str]) -> None:
    app = cluster.app()
    policy = RetryPolicy(initial=0.3, factor=1.0, maximum=0.3, attempts=50)
    flaky = cluster.actor(app, Flaky, retry=policy, head_of_line="park").at("a")
    await cluster.start(app)
    broken.add("x")
    receipt = await flaky.write.send("x")
    assert await flaky.write("y") == ["y"]
    assert await flaky.write("z") == ["y", "z"]
    broken.clear()
    assert await receipt == ["y", "z", "x"]
    assert await cluster.rows("SELECT count(*) FROM timer") == [0]
    assert await dead_letters(cluster) == []


async def test_what_is_parked_survives_its_owner_with_its_count(
    cluster: LiveCluster, broken: set[str]
) -> None:
    app = cluster.app()
    flaky = cluster.actor(app, Flaky, retry=NEVER, head_of_line="park").at("a")
    first = await cluster.start(app)
    broken.add("x")
    receipt = await flaky.write.send("x")

    async def parked() -> bool:
        return await cluster.rows("SELECT retries FROM timer") == [1]

    await soon(parked, "a parked request")
    assert await cluster.pending() == 0
    await cluster.stop(first)
    broken.clear()
    await cluster.rows("UPDATE timer SET due_at = now()")
    await cluster.start(app, "r2")
    assert await receipt == ["x"]
    assert cluster.stage.lines("write a ")[-1] == "x 2 1"


async def test_a_concurrent_message_that_fails_stops_nobody(cluster: LiveCluster, broken: set[str]) -> None:
    app = cluster.app()
    flaky = cluster.actor(app, Flaky, retry=QUICK).at("a")
    await cluster.start(app)
    broken.add("x")
    with pytest.raises(EntityDefect):
        await flaky.read("x")
    assert cluster.stage.lines("read a ") == ["x 1", "x 2", "x 3"]
    assert [row[3:6] for row in await dead_letters(cluster)] == [("read", 3, "ValueError")]


async def test_a_task_is_tried_again(cluster: LiveCluster) -> None:
    app = cluster.app()
    attempts: list[int] = []

    @app.task(retry=QUICK)
    async def third_time(name: str) -> str:
        attempts.append(len(attempts) + 1)
        if len(attempts) < 3:
            raise ValueError(name)
        return name

    await cluster.start(app)
    assert await third_time.ask("x") == "x"
    assert attempts == [1, 2, 3]
