"""Broadcasts on real clusters of several runners."""

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from entityq import (
    Accepted,
    Broadcast,
    Entity,
    EntityQ,
    MalformedMessage,
    PayloadTooLarge,
    PersistenceError,
    SendTimeout,
    message,
)
from entityq.envelope import NOBODY
from entityq.redis.broadcasts import KIND, broadcast_message
from entityq.redis.connect import open_connection
from entityq.redis.control import ControlMessage
from entityq.redis.keys import Keys
from entityq.redis.replies import ReplySubscription, encode_replies
from entityq.runner.tasks import end
from tests.support.live import LiveCluster, Member, soon
from tests.support.processes import CommandLine
from tests.support.servers import SHARDS, Connection, connected
from tests.support.stage import Actor
from tests.support.waiting import eventually_async

IDS = [str(number) for number in range(12)]


class Room(Actor):
    opened: int = 0

    @message
    async def open(self, gate: str = "") -> int:
        await self._stage.enter(f"open {self.id}", gate)
        self.opened += 1
        return self.opened

    @message(persisted=False)
    async def hear(self, text: str) -> None:
        self._stage.tell(f"hear {self.id} {text}")

    @message(persisted=False, concurrent=True)
    def measure(self, data: bytes) -> None:
        self._stage.enter_from_thread(f"measure {self.id} {len(data)} {self.context.deadline}")

    @message
    async def announce(self, text: str) -> int:
        return (await type(self).hear.broadcast(text)).activations

    @message
    def announce_from_thread(self, text: str) -> int:
        return type(self).hear.broadcast_blocking(text).activations

    async def on_deactivate(self) -> None:
        await self._stage.enter(f"close {self.id}", "closing")


class Cellar(Actor):
    @message
    async def open(self) -> None: ...

    @message(persisted=False)
    async def hear(self, text: str) -> None:
        self._stage.tell(f"cellar {self.id} {text}")


async def runners(cluster: LiveCluster, *apps: EntityQ) -> list[Member]:
    """One for each app, when they share the shards and all serve."""
    members = [await cluster.start(app, f"r{place}", shards=0) for place, app in enumerate(apps)]

    async def shared() -> bool:
        counts = [len(member.life.shards) for member in members]
        return (
            sum(counts) == SHARDS
            and all(counts)
            and all(member.serves(count) for member, count in zip(members, counts, strict=True))
        )

    await soon(shared, "all shards, shared by all runners")
    return members


async def nothing_waits(*members: Member) -> None:
    async def nothing() -> bool:
        return all(len(member.life.prefetch) == 0 for member in members)

    await soon(nothing, "no request in the runners")


async def test_it_reaches_what_is_in_memory_on_all_runners_and_waits_for_nobody_else(
    cluster: LiveCluster,
) -> None:
    app = cluster.app()
    room, cellar = cluster.actor(app, Room), cluster.actor(app, Cellar)
    members = await runners(cluster, app, app, app)
    for number in IDS:
        await room.at(number).open()
        await cellar.at(number).open()
    assert all(len(member.life.residents) for member in members)
    async with asyncio.timeout(20):
        reached = await room.hear.options(timeout=100).broadcast("fire")
    assert reached == Broadcast(runners=3, activations=len(IDS), refused=0, unanswered=0)
    await cluster.stage.saw(*(f"hear {number} fire" for number in IDS))
    await nothing_waits(*members)
    assert len(cluster.stage.lines("hear ")) == len(IDS), "each once"
    assert cluster.stage.lines("cellar ") == []
    # The entities go on, and nothing of it was stored.
    assert await room.at("0").open() == 2
    assert await cluster.requests() == 2 * len(IDS) + 1


async def test_nobody_is_told_what_the_handlers_return(cluster: LiveCluster, redis_url: str) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    (member,) = await runners(cluster, app)
    await room.at("0").open()
    told = list[int]()
    subscription = ReplySubscription(
        open_connection(redis_url),
        Keys(cluster.namespace).reply_channel(NOBODY),
        received=lambda pairs: told.extend(request_id for request_id, _ in pairs),
        interrupted=lambda: None,
    )
    listening = asyncio.create_task(subscription.run())
    try:
        await subscription.subscribed.wait()
        assert (await room.hear.broadcast("fire")).activations == 1
        await cluster.stage.saw("hear 0 fire")
        await nothing_waits(member)
        (last,) = encode_replies([(1, b"")])
        await cluster.redis("PUBLISH", Keys(cluster.namespace).reply_channel(NOBODY), last)

        async def heard() -> bool:
            return 1 in told

        await soon(heard, "what was published last")
    finally:
        await end(listening)
    assert told == [1]


async def test_a_large_payload_arrives_and_a_larger_one_is_refused(cluster: LiveCluster) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    await runners(cluster, app, app)
    await room.at("0").open()
    assert (await room.measure.broadcast(bytes(1_000_000))).activations == 1
    await cluster.stage.saw("measure 0 1000000 None")
    with pytest.raises(PayloadTooLarge):
        await room.measure.broadcast(bytes(2**20))


async def test_a_full_mailbox_is_not_reached(cluster: LiveCluster) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room, mailbox_capacity=2)
    (member,) = await runners(cluster, app)
    cluster.stage.close("g")
    busy = [await room.at("0").open.send("g") for _ in range(2)]
    half = await room.at("1").open.send("g")
    await cluster.stage.saw("open 0", "open 1")

    async def full() -> bool:
        return len(member.life.prefetch) == 3

    await soon(full, "a full mailbox")
    assert await room.hear.broadcast("fire") == Broadcast(runners=1, activations=1, refused=1, unanswered=0)
    assert cluster.stage.lines("hear ") == [], "it waits for the turn before it"
    cluster.stage.open("g")
    assert [await receipt for receipt in (*busy, half)] == [1, 2, 1]
    await cluster.stage.saw("hear 1 fire")
    await nothing_waits(member)
    assert cluster.stage.lines("hear ") == ["1 fire"]


async def test_a_runner_whose_code_does_not_know_the_message_says_so(cluster: LiveCluster) -> None:
    new, old = cluster.app(), cluster.app()

    class OldRoom(Room):
        hear = None  # type: ignore[assignment]  # a version of the code that has no such message

    room = cluster.actor(new, Room)
    cluster.actor(old, OldRoom, type="Room")
    members = await runners(cluster, new, old)
    for number in IDS:
        await room.at(number).open()
    known, unknown = (len(member.life.residents) for member in members)
    assert unknown
    assert await room.hear.broadcast("fire") == Broadcast(2, known, unknown, 0)


async def test_an_activation_on_its_way_out_is_not_reached(cluster: LiveCluster) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room, max_idle=0.1)
    await runners(cluster, app)
    cluster.stage.close("closing")
    await room.at("0").open()
    await cluster.stage.saw("close 0")
    assert await room.hear.broadcast("fire") == Broadcast(1, 0, 0, 0)
    cluster.stage.open("closing")


async def test_a_shard_on_its_way_to_another_runner_is_not_reached(cluster: LiveCluster) -> None:
    app = cluster.app(termination_time=30.0)
    room = cluster.actor(app, Room)
    (member,) = await runners(cluster, app)
    cluster.stage.close("g")
    held = await room.at("0").open.send("g")
    await cluster.stage.saw("open 0")
    stopping = asyncio.create_task(cluster.stop(member))

    async def given_up() -> bool:
        return not len(member.life.shards)

    await soon(given_up, "shards that are being given up")
    reached = await room.hear.options(timeout=2).broadcast("fire")
    assert (reached.activations, reached.refused) == (0, 0)
    cluster.stage.open("g")
    await stopping
    assert await cluster.pending() == 0
    await cluster.start(app, "next")
    assert await held == 1


async def test_from_a_turn_it_leaves_at_once(cluster: LiveCluster) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    members = await runners(cluster, app, app)
    for number in IDS:
        await room.at(number).open()
    assert await room.at("0").announce("fire") == len(IDS)
    assert await room.at("1").announce_from_thread("flood") == len(IDS)
    for number in IDS:
        await cluster.stage.saw(f"hear {number} fire", f"hear {number} flood")
    await nothing_waits(*members)


async def test_from_sync_code(cluster: LiveCluster) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    await runners(cluster, app)
    await room.at("0").open()
    try:
        reached = await asyncio.to_thread(room.hear.broadcast_blocking, "fire")
    finally:
        await asyncio.to_thread(app.close_blocking)
    assert reached == Broadcast(1, 1, 0, 0)
    await cluster.stage.saw("hear 0 fire")


async def test_only_runners_of_the_group_are_asked(cluster: LiveCluster) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    cluster.actor(app, Cellar, shard_group="deep")
    assert await room.hear.broadcast("fire") == Broadcast(0, 0, 0, 0), "there is none at all"
    await cluster.start(app, "deep", groups=["deep"])
    assert await room.hear.broadcast("fire") == Broadcast(0, 0, 0, 0)
    await cluster.start(app, "default", groups=["default"])
    assert await room.hear.broadcast("fire") == Broadcast(1, 0, 0, 0)


async def test_what_cannot_be_broadcast_is_refused_at_the_call(cluster: LiveCluster) -> None:
    app = cluster.app()
    room: Any = cluster.actor(app, Room)
    with pytest.raises(MalformedMessage, match=r"Room\.open is persisted: only a volatile message"):
        await room.open.broadcast()
    with pytest.raises(MalformedMessage, match=r"payload of Room\.hear"):
        await room.hear.broadcast(text=1)
    with pytest.raises(MalformedMessage, match="timeout must be above 0"):
        room.hear.options(timeout=0)
    with pytest.raises(TypeError, match="Room belongs to no app"):
        await Room.hear.broadcast("fire")


async def test_without_redis_the_caller_is_told(cluster: LiveCluster, tmp_path: Path) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    deaf = cluster.app(redis_url=f"unix://{tmp_path}/nobody")
    deaf_room = cluster.actor(deaf, Room)
    await runners(cluster, app)
    await room.at("0").open()
    with pytest.raises(SendTimeout, match=r"Redis did not take the broadcast of Room\.hear") as refused:
        await deaf_room.hear.options(timeout=0.5).broadcast("fire")
    assert refused.value.accepted is Accepted.NO
    assert refused.value.retryable


async def test_without_postgres_nobody_knows_the_runners(cluster: LiveCluster, postgres_url: str) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    assert await room.hear.broadcast("fire") == Broadcast(0, 0, 0, 0)
    with psycopg.connect(postgres_url) as stranger:
        stranger.execute("LOCK TABLE entityq.runner IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(PersistenceError, match=r"Room\.hear was not broadcast: the live runners"):
            await room.hear.options(timeout=0.5).broadcast("fire")


async def test_strange_messages_on_the_control_channel_do_no_harm(
    cluster: LiveCluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = cluster.app()
    room = cluster.actor(app, Room)
    await runners(cluster, app)
    await room.at("0").open()
    (me,) = await cluster.rows("SELECT incarnation FROM runner")
    strange = (ControlMessage(KIND, {"answers": 1}), broadcast_message(b"no envelope", {me: 1}))
    with caplog.at_level(logging.WARNING):
        for each in strange:
            await cluster.redis("PUBLISH", Keys(cluster.namespace).control_channel(), each.encode())
        assert await room.hear.broadcast("fire") == Broadcast(1, 1, 0, 0)
    assert caplog.text.count("broadcast.unreadable") == 2


LISTENERS = """
import os
import pathlib

from entityq import Entity, EntityQ, message

app = EntityQ("listeners")


@app.entity
class Listener(Entity):
    times: int = 0

    @message
    async def where(self) -> int:
        self.times += 1
        return os.getpid()

    @message(persisted=False)
    async def hear(self, text: str) -> None:
        (pathlib.Path(__file__).parent / f"{text}-{self.id}-{os.getpid()}").touch()
"""


class Listener(Entity):
    """As the client knows it."""

    times: int = 0

    @message
    async def where(self) -> int:
        return os.getpid()

    @message(persisted=False)
    async def hear(self, text: str) -> None: ...


async def test_a_frozen_runner_is_counted_as_silent_and_delivers_nothing_afterwards(
    entityq: CommandLine, postgres_url: str, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "listeners.py").write_text(LISTENERS)
    app = EntityQ("listeners", postgres_url=postgres_url, redis_url=redis_url, namespace=namespace)
    listener = app.entity(Listener)
    # Nobody is evicted, or found to be unhealthy, here.
    calm = {"ENTITYQ_LEASE_TIME": "60", "ENTITYQ_RUNNER_HEALTH": "noop"}
    worker = entityq.spawn("worker", "-A", "listeners:app", "-c", "2", cwd=tmp_path, env=calm)

    def shared(sql: Connection) -> bool:
        rows = sql.execute("SELECT count(*) FROM entityq.shard GROUP BY incarnation").fetchall()
        return len(rows) == 2 and sum(int(str(row[0])) for row in rows) == SHARDS

    async def both() -> list[int]:
        """Where each entity is, once no shard moves any more."""
        with connected(postgres_url) as sql:
            if not shared(sql):
                return []
        places = [await listener.at(number).where() for number in IDS]
        reached = await listener.hear.broadcast("zero")
        settled = len(set(places)) == 2 and reached.activations == len(IDS)
        return places if settled else []

    def heard(text: str) -> set[str]:
        return {file.name.split("-")[1] for file in tmp_path.glob(f"{text}-*")}

    async with app:
        places = await eventually_async(both, 20.0, "entities in both runners")
        everybody, frozen = len(IDS), psutil.Process(places[0])
        assert frozen in worker.children
        assert await listener.hear.broadcast("one") == Broadcast(2, everybody, 0, 0)
        here = {number for number, pid in zip(IDS, places, strict=True) if pid != frozen.pid}
        frozen.send_signal(signal.SIGSTOP)
        try:
            reached = await listener.hear.options(timeout=1).broadcast("two")
        finally:
            frozen.send_signal(signal.SIGCONT)
        assert reached == Broadcast(runners=1, activations=len(here), refused=0, unanswered=1)
        # Awake, it reads what was said meanwhile, and knows that its sender has gone.
        assert await listener.hear.broadcast("three") == Broadcast(2, everybody, 0, 0)

        async def all_heard() -> bool:
            return heard("three") == set(IDS)

        await soon(all_heard, "the last one, everywhere")
        assert heard("one") == set(IDS)
        assert heard("two") == here
