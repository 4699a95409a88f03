"""Turns on a real cluster of one runner: what they may change, what they send, and what becomes of it."""

import asyncio
from typing import Any, ClassVar

import psycopg
import pytest

from entityq import EntityDefect, EntityQError, PrimaryKeyConflict, message
from tests.support.live import LiveCluster, soon
from tests.support.places import shard_of
from tests.support.probe import Probe, Refused
from tests.support.stage import Actor


async def state(cluster: LiveCluster, entity_id: str) -> Any:
    rows = await cluster.rows("SELECT version, state FROM entity WHERE entity_id = %s", entity_id)
    return rows[0] if rows else None


# ----- what a turn that raises leaves


async def test_a_failure_is_typed_and_leaves_the_state_as_it_was(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    assert await probe.note("x") == 1
    with pytest.raises(Refused) as refused:
        await probe.refuse("no")
    assert refused.value.reason == "no"
    assert await probe.peek() == ["x"]
    assert await probe.add(1, "k") == 1


async def test_a_defect_tells_the_type_only_and_leaves_the_state_as_it_was(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    assert await probe.note("x") == 1
    _, before = await state(cluster, "a")
    with pytest.raises(EntityDefect, match="ZeroDivisionError"):
        await probe.explode()
    _, after = await state(cluster, "a")
    assert after == before
    assert await probe.peek() == ["x"]
    assert await probe.add(1, "k") == 1
    assert "turn.defect" in caplog.text
    assert "Probe/a" in caplog.text


async def test_a_first_turn_that_raises_leaves_a_new_entity(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe)
    member = await cluster.start(app)
    for entity_id in ("a", "b"):
        with pytest.raises(Refused):
            await probe.at(entity_id).refuse("no")
    assert await probe.at("a").note("x") == 1
    # Also where another runner loads what the failed turn has left.
    await cluster.stop(member)
    await cluster.start(app, "r2")
    assert await probe.at("b").note("x") == 1
    assert await probe.at("b").add(1, "k") == 1


async def test_leases_that_are_lost_while_a_state_is_loaded_make_no_defect(
    cluster: LiveCluster, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)

    async def loading() -> bool:
        return bool(await cluster.rows("SELECT 1 FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"))

    async def lost() -> bool:
        return "leases.lost" in caplog.text

    with psycopg.connect(postgres_url) as stranger:
        stranger.execute("LOCK TABLE entityq.entity IN ACCESS EXCLUSIVE MODE")
        asking = asyncio.create_task(probe.note("x"))
        await soon(loading, "a load that waits")
        await cluster.rows("SELECT pg_terminate_backend(pid) FROM runner")
        await soon(lost, "the end of the leases")
    assert await asking == 1
    assert "turn.defect" not in caplog.text


# ----- read-only copies


class Reader(Actor):
    total: int = 0
    items: list[list[str]] = []
    _seen: int = 0

    @message
    async def fill(self, text: str, gate: str = "") -> None:
        self.items.append([text])
        self.total += 1
        await self._stage.enter(f"fill {text}", gate)

    @message
    def fill_in_thread(self, text: str, gate: str = "") -> int:
        self.items.append([text])
        self.total += 1
        self._stage.enter_from_thread(f"fill {text}", gate)
        return self.total

    @message(persisted=False)
    async def assign_volatile(self) -> None:
        self.total = 100

    @message(concurrent=True)
    async def assign_concurrent(self) -> None:
        self.total = 100

    @message(persisted=False)
    async def scribble(self) -> list[list[str]]:
        self.items[0].append("scribbled")
        self.items.append(["scribbled"])
        self._seen += 1
        return self.items

    @message(persisted=False, concurrent=True)
    async def read(self, gate: str = "") -> list[list[str]]:
        await self._stage.enter("read", gate)
        return self.items


@pytest.mark.parametrize("name", ["assign_volatile", "assign_concurrent"])
async def test_only_a_persisted_turn_that_is_not_concurrent_may_assign(
    cluster: LiveCluster, name: str
) -> None:
    app = cluster.app()
    reader = cluster.actor(app, Reader).at("a")
    await cluster.start(app)
    with pytest.raises(EntityDefect, match="AttributeError"):
        await getattr(reader, name)()
    assert await reader.fill_in_thread("x") == 1


async def test_what_a_read_only_turn_does_to_its_copy_stays_in_the_copy(cluster: LiveCluster) -> None:
    app = cluster.app()
    reader = cluster.actor(app, Reader).at("a")
    await cluster.start(app)
    await reader.fill("x")
    assert await reader.scribble() == [["x", "scribbled"], ["scribbled"]]
    assert await reader.read() == [["x"]]
    await reader.fill("y")
    assert await reader.read() == [["x"], ["y"]]


async def test_a_concurrent_turn_sees_what_is_committed_not_what_is_being_done(cluster: LiveCluster) -> None:
    app = cluster.app()
    reader = cluster.actor(app, Reader, concurrency=3).at("a")
    await cluster.start(app)
    await reader.fill("x")
    cluster.stage.close("g")
    filling = await reader.fill.send("y", gate="g")
    await cluster.stage.saw("fill y")
    assert await reader.read() == [["x"]]
    cluster.stage.open("g")
    await filling
    assert await reader.read() == [["x"], ["y"]]


async def test_concurrent_turns_run_beside_each_other_up_to_the_concurrency(cluster: LiveCluster) -> None:
    app = cluster.app()
    reader = cluster.actor(app, Reader, concurrency=2).at("a")
    await cluster.start(app)
    cluster.stage.close("g")
    reads = [asyncio.create_task(reader.read("g")) for _ in range(3)]
    await cluster.stage.until(lambda: cluster.stage.journal.count("read") == 2, "two reads")
    cluster.stage.open("g")
    await asyncio.gather(*reads)


# ----- activation and passivation


class Lively(Actor):
    count: int = 0
    _loaded: int = -1

    async def on_activate(self) -> None:
        self._loaded = self.count
        await self._stage.enter(f"activate {self.id} {self.count}", "activate")

    async def on_deactivate(self) -> None:
        await self._stage.enter(f"deactivate {self.id}", "deactivate")

    @message
    async def step(self) -> int:
        self._stage.tell(f"step {self.id}")
        self.count += 1
        return self.count

    @message(persisted=False, concurrent=True)
    async def loaded(self) -> int:
        return self._loaded


async def test_the_hooks_stand_around_the_turns(cluster: LiveCluster) -> None:
    app = cluster.app()
    lively = cluster.actor(app, Lively).at("a")
    member = await cluster.start(app)
    assert [await lively.step(), await lively.step(), await lively.loaded()] == [1, 2, 0]
    await cluster.stop(member)
    assert cluster.stage.journal == ["activate a 0", "step a", "step a", "deactivate a"]
    await cluster.start(app, "r2")
    assert [await lively.loaded(), await lively.step()] == [2, 3]


async def test_turns_that_start_together_share_one_activation(cluster: LiveCluster) -> None:
    app = cluster.app()
    lively = cluster.actor(app, Lively, concurrency=3).at("a")
    await cluster.start(app)
    cluster.stage.close("activate")
    asking = [asyncio.create_task(call) for call in (lively.loaded(), lively.loaded(), lively.step())]
    await cluster.stage.saw("activate a 0")
    assert await lively.status() is not None  # a round trip: the others have been read by now
    cluster.stage.open("activate")
    assert await asyncio.gather(*asking) == [0, 0, 1]
    assert await lively.step() == 2
    assert cluster.stage.journal.count("activate a 0") == 1


async def test_an_idle_entity_leaves_memory_and_comes_back_with_its_state(cluster: LiveCluster) -> None:
    app = cluster.app()
    lively = cluster.actor(app, Lively, max_idle=0.01).at("a")
    await cluster.start(app)
    assert await lively.step() == 1
    await cluster.stage.saw("deactivate a")
    assert await lively.step() == 2
    assert cluster.stage.journal == ["activate a 0", "step a", "deactivate a", "activate a 1", "step a"]


async def test_a_new_activation_waits_for_the_end_of_the_old_one(cluster: LiveCluster) -> None:
    app = cluster.app()
    lively = cluster.actor(app, Lively, max_idle=0.01).at("a")
    member = await cluster.start(app)
    cluster.stage.close("deactivate")
    assert await lively.step() == 1
    await cluster.stage.saw("deactivate a")
    receipt = await lively.step.send()

    async def queued() -> bool:
        (activation,) = member.life.residents
        return activation.queued == 1

    await soon(queued, "the request waits")
    assert cluster.stage.journal[-1] == "deactivate a"
    cluster.stage.open("deactivate")
    assert await receipt == 2
    assert cluster.stage.journal[-2:] == ["activate a 1", "step a"]


async def test_a_shard_is_given_up_only_after_a_passivation_has_ended(cluster: LiveCluster) -> None:
    app = cluster.app(termination_time=10.0)
    lively = cluster.actor(app, Lively, max_idle=0.01).at("a")
    member = await cluster.start(app)
    cluster.stage.close("deactivate")
    assert await lively.step() == 1
    await cluster.stage.saw("deactivate a")
    (activation,) = member.life.residents
    releasing = asyncio.create_task(member.life.release(activation.tenure.shard_id))
    done, _ = await asyncio.wait([releasing], timeout=0.1)
    assert not done
    cluster.stage.open("deactivate")
    await releasing
    assert cluster.stage.journal.count("deactivate a") == 1


async def test_forget_removes_the_state_and_ends_the_activation(cluster: LiveCluster) -> None:
    app = cluster.app()
    lively = cluster.actor(app, Lively).at("a")
    await cluster.start(app)
    assert await lively.step() == 1
    await lively.forget()
    assert await state(cluster, "a") is None
    assert await lively.step() == 1
    assert cluster.stage.journal == ["activate a 0", "step a", "deactivate a", "activate a 0", "step a"]
    assert await state(cluster, "a") is not None


async def test_an_entity_whose_stored_state_cannot_be_read_can_be_forgotten(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await cluster.rows(
        "INSERT INTO entity (shard_id, type, entity_id, version, epoch, outcome, state)"
        " SELECT shard_id, 'Probe', 'a', 7, 1, 0, '\\xff' FROM shard WHERE number = %s RETURNING 1",
        shard_of("a"),
    )
    with pytest.raises(EntityDefect):
        await probe.note("x")
    await probe.forget()
    assert await state(cluster, "a") is None
    assert await probe.note("x") == 1


# ----- what a turn sends


class Sender(Actor):
    probe: ClassVar[Probe]
    told: int = 0

    @message
    async def tell(self, *, then: str = "", keys: tuple[str, ...] = ()) -> list[int]:
        receipts = [await self.probe.add.send(1, key) for key in keys]
        self.told += len(keys)
        await self._stage.enter(f"told {self.id}", "told")
        match then:
            case "raise":
                raise RuntimeError(then)
            case "refuse":
                raise Refused(reason=then)
            case "wait":
                await receipts[0]
            case _:
                return [receipt.request_id for receipt in receipts]
        return []

    @message
    def tell_in_thread(self, key: str) -> int:
        return self.probe.add.delay(1, key).request_id

    @message
    async def tell_other(self, amount: int, key: str) -> None:
        self.told += 1
        await self.probe.add.send(amount, key)

    @message(concurrent=True)
    async def tell_beside(self, amount: int, key: str) -> None:
        await self.probe.add.send(amount, key)

    @message
    async def ask(self, key: str, gate: str = "") -> int:
        answer = await self.probe.add(1, key)
        await self._stage.enter(f"asked {self.id} {answer}", gate)
        return answer

    @message
    async def ask_for_a_note(self, text: str, gate: str = "") -> int:
        answer = await self.probe.note(text)
        await self._stage.enter(f"asked {self.id} {answer}", gate)
        return answer

    @message
    async def ask_itself(self) -> list[int]:
        return await self.tell()

    @message
    async def send_itself(self) -> int:
        return (await self.ask_for_a_note.send("from myself")).request_id

    @message(persisted=False, concurrent=True)
    async def count(self) -> int:
        return self.told


def with_probe(cluster: LiveCluster, **settings: object) -> tuple[Any, type[Sender], Probe]:
    app = cluster.app(**settings)
    sender = cluster.actor(app, Sender, concurrency=2)
    sender.probe = cluster.actor(app, Probe).at("target")
    return app, sender, sender.probe


async def test_sends_of_a_turn_are_stored_with_its_commit_and_in_order(cluster: LiveCluster) -> None:
    app, sender, _ = with_probe(cluster)
    await cluster.start(app)
    cluster.stage.close("told")
    receipt = await sender.at("a").tell.send(keys=("z", "m", "a"))
    await cluster.stage.saw("told a")
    assert await cluster.requests() == 1
    cluster.stage.open("told")
    assert len(await receipt) == 3
    await cluster.stage.until(lambda: len(cluster.stage.lines("add target ")) == 3, "three adds")
    assert cluster.stage.lines("add target ") == ["z", "m", "a"]


@pytest.mark.parametrize("then", ["raise", "refuse"])
async def test_a_turn_that_raises_sends_nothing(cluster: LiveCluster, then: str) -> None:
    app, sender, _ = with_probe(cluster)
    await cluster.start(app)
    with pytest.raises((EntityDefect, Refused)):
        await sender.at("a").tell(then=then, keys=("k",))
    assert await cluster.requests() == 1
    assert await sender.at("a").count() == 0


async def test_a_send_from_a_thread_is_part_of_the_turn(cluster: LiveCluster) -> None:
    app, sender, probe = with_probe(cluster)
    await cluster.start(app)
    request_id = await sender.at("a").tell_in_thread("k")
    assert request_id in await cluster.rows("SELECT request_id FROM outbox")
    receipt = await probe.add.send(1, "k")
    assert (receipt.duplicate, receipt.request_id) == (True, request_id)


async def test_waiting_for_the_own_send_is_refused(cluster: LiveCluster) -> None:
    app, sender, _ = with_probe(cluster)
    await cluster.start(app)
    with pytest.raises(EntityDefect):
        await sender.at("a").tell(then="wait", keys=("k",))
    assert await cluster.requests() == 1


async def test_a_send_that_conflicts_is_a_defect_and_nothing_of_its_turn_is_applied(
    cluster: LiveCluster,
) -> None:
    app, sender, probe = with_probe(cluster)
    await cluster.start(app)
    first = await probe.add.send(1, "k")
    await first
    with pytest.raises(EntityDefect) as defect:
        await sender.at("a").tell_other(2, "k")
    assert str(first.request_id) in str(defect.value)
    assert await sender.at("a").count() == 0
    await sender.at("a").tell_other(1, "k")
    assert await sender.at("a").count() == 1


async def test_a_concurrent_turn_that_conflicts_does_not_undo_the_one_beside_it(cluster: LiveCluster) -> None:
    app, sender, probe = with_probe(cluster)
    await cluster.start(app)
    await probe.add(1, "k")
    cluster.stage.close("told")
    beside = await sender.at("a").tell.send(keys=("l",))
    await cluster.stage.saw("told a")
    with pytest.raises(EntityDefect):
        await sender.at("a").tell_beside(2, "k")
    cluster.stage.open("told")
    await beside
    assert await sender.at("a").count() == 1


async def test_an_ask_of_a_turn_that_runs_again_joins_the_first(cluster: LiveCluster) -> None:
    """Whatever its payload: the repeat may compute another one."""
    app, sender, probe = with_probe(cluster)
    member = await cluster.start(app)
    cluster.stage.close("g")
    receipt = await sender.at("a").ask_for_a_note.send("x", gate="g")
    await cluster.stage.saw("asked a 1")
    await cluster.crash(member)
    await cluster.rows("SELECT 1")
    cluster.stage.open("g")
    await cluster.start(app, "r2")
    assert await receipt == 1
    assert cluster.stage.journal == ["note target x", "asked a 1", "asked a 1"]
    assert await probe.peek() == ["x"]


async def test_an_ask_is_not_undone_by_the_turn(cluster: LiveCluster) -> None:
    app, sender, probe = with_probe(cluster)
    await cluster.start(app)
    assert await sender.at("a").ask("k") == 1
    with pytest.raises(PrimaryKeyConflict):
        await probe.add(2, "k")


async def test_an_ask_to_oneself_is_refused_and_a_send_is_not(cluster: LiveCluster) -> None:
    app, sender, _ = with_probe(cluster)
    await cluster.start(app)
    with pytest.raises(EntityDefect):
        await sender.at("a").ask_itself()
    await sender.at("a").send_itself()
    await cluster.stage.saw("note target from myself", "asked a 1")


class Ping(Actor):
    other: ClassVar[Actor]

    @message
    async def ping(self) -> str:
        try:
            other = self.other
            assert isinstance(other, Pong)
            return await other.pong()
        except EntityQError as error:
            return error.what


class Pong(Actor):
    back: ClassVar[Ping]

    @message
    async def pong(self) -> str:
        try:
            return await self.back.ping()
        except EntityQError as error:
            return f"pong: {error.what}"


async def test_a_chain_of_asks_that_returns_is_refused_at_once(cluster: LiveCluster) -> None:
    app = cluster.app()
    ping, pong = cluster.actor(app, Ping), cluster.actor(app, Pong)
    ping.other, pong.back = pong.at("b"), ping.at("a")
    await cluster.start(app)
    refusal = await ping.at("a").ping()
    assert refusal.startswith("pong: ")
    assert "Ping/a -> Pong/b" in refusal


async def test_a_waiting_turn_holds_no_place_that_the_asked_one_needs(cluster: LiveCluster) -> None:
    """One slot, one resident entity, a prefetch of two: and two requests wait behind the turn that asks."""
    app, sender, _ = with_probe(cluster, max_turns=1, max_resident=1, prefetch=2, ask_timeout=4)
    await cluster.start(app)
    cluster.stage.close("told")
    first = await sender.at("a").tell.send()
    await cluster.stage.saw("told a")
    receipts = [await sender.at("a").ask_for_a_note.send(text) for text in "xyz"]
    cluster.stage.open("told")
    await first
    assert [await receipt for receipt in receipts] == [1, 2, 3]


# ----- tasks


async def test_a_task_has_no_state_and_no_row_of_an_entity(cluster: LiveCluster) -> None:
    app = cluster.app()

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(primary_key="key")
    async def once(key: str) -> str:
        cluster.stage.tell(f"once {key}")
        return key

    member = await cluster.start(app)
    assert await asyncio.gather(*(add.ask(number, 1) for number in range(20))) == list(range(1, 21))
    assert [await once.ask("k"), await once.ask("k")] == ["k", "k"]
    assert cluster.stage.journal == ["once k"]
    assert await cluster.rows("SELECT count(*) FROM entity") == [0]

    async def gone() -> bool:
        return len(member.life.residents) == 0

    await soon(gone, "the end of the tasks' activations")


async def test_context_has_the_request_and_a_token_that_grows(cluster: LiveCluster) -> None:
    class Curious(Actor):
        turns: int = 0

        @message(primary_key="key")
        async def look(self, key: str) -> tuple[int, str | None, int, int]:
            self.turns += 1
            epoch, version = self.context.fencing_token
            return self.context.request_id, self.context.primary_key, epoch, version

    app = cluster.app()
    curious = cluster.actor(app, Curious).at("a")
    member = await cluster.start(app)
    receipt = await curious.look.send("k")
    request_id, key, epoch, version = await receipt
    assert (request_id, key) == (receipt.request_id, "k")
    second = await curious.look("l")
    assert second[2:] == (epoch, version + 1)
    await cluster.stop(member)
    await cluster.start(app, "r2")
    third = await curious.look("m")
    assert third[2] > epoch
