"""Which runner removes what is no longer kept, and how it goes on."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from entityq import ReplyExpired, message
from entityq.errors import Accepted
from entityq.postgres.facts import Group
from entityq.postgres.retention import Purged, Retention
from entityq.runner import purger
from tests.support.live import LiveCluster, soon
from tests.support.probe import Probe
from tests.support.stage import Actor


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purger, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(purger, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(purger, "PAGE", 3)


async def keep(cluster: LiveCluster, seconds: float, keys: float = 3600) -> None:
    """Less than an app may declare."""
    await cluster.rows(
        "UPDATE retention SET keep = make_interval(secs => %s), keep_keys = make_interval(secs => %s)",
        seconds,
        keys,
    )


async def expired(cluster: LiveCluster) -> int:
    (count,) = await cluster.rows("SELECT count(*) FROM outbox WHERE reply = ''")
    return int(count)


class Keeper(Actor):
    @message(keep=timedelta(hours=1), keep_keys=7200)
    async def touch(self) -> None: ...


async def test_a_runner_declares_how_long_its_messages_are_kept(cluster: LiveCluster) -> None:
    app = cluster.app(keep="1d", keep_keys="2d")
    cluster.actor(app, Keeper)
    await cluster.start(app)
    assert await cluster.rows("SELECT message, keep::text, keep_keys::text FROM retention ORDER BY 1") == [
        ("$forget", "24:00:00", "48:00:00"),
        ("touch", "01:00:00", "02:00:00"),
    ]


async def test_what_is_due_goes_and_a_late_repeat_is_refused(cluster: LiveCluster) -> None:
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    receipt = await probe.note.send("unkeyed")
    await asyncio.gather(*(probe.note(str(number)) for number in range(8)))
    assert await probe.add(5, "k") == 5
    await keep(cluster, 0.1)

    async def only_the_key_is_left() -> bool:
        return await cluster.requests() == 1 and await expired(cluster) == 1

    await soon(only_the_key_is_left, "a purge")
    with pytest.raises(ReplyExpired, match="with primary key 'k'") as refused:
        await probe.add(5, "k")
    assert refused.value.accepted is Accepted.NO
    with pytest.raises(ReplyExpired, match="no longer kept") as late:
        await receipt
    assert late.value.accepted is Accepted.YES

    await keep(cluster, 0.1, 0.1)

    async def all_is_gone() -> bool:
        return await cluster.requests() == 0

    await soon(all_is_gone, "a purge of the key")
    await keep(cluster, 3600)
    assert await probe.add(5, "k") == 10


async def test_what_is_answered_late_goes_too(cluster: LiveCluster) -> None:
    """The fronts have passed it long ago."""
    app = cluster.app()
    probes = cluster.actor(app, Probe)
    await cluster.start(app)
    cluster.stage.close("g")
    await probes.at("a").note.send("late", gate="g")
    await cluster.rows("UPDATE outbox SET request_id = 1")
    await cluster.rows("UPDATE pending SET request_id = 1")
    await keep(cluster, 0.1)
    await probes.at("b").note("early")

    async def the_early_one_is_gone() -> bool:
        return await cluster.requests() == 1

    await soon(the_early_one_is_gone, "a purge")
    await cluster.rows("UPDATE outbox SET reply = 'r', replied_at = now()")

    async def all_is_gone() -> bool:
        return await cluster.requests() == 0

    await soon(all_is_gone, "a second round")


async def test_of_two_runners_one_purges_and_then_the_other(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    purging: list[Retention] = []
    purge = Retention.purge

    async def noted(self: Retention, group: Group, after: int, until: int, page: int) -> Purged:
        purging.append(self)
        return await purge(self, group, after, until, page)

    monkeypatch.setattr(Retention, "purge", noted)
    apps = [cluster.app(), cluster.app()]
    for app in apps:
        cluster.actor(app, Probe)
    members = [await cluster.start(app, f"r{place}", shards=0) for place, app in enumerate(apps)]

    async def shared() -> bool:
        return all(member.runner.life is not None and len(member.life.shards) for member in members)

    await soon(shared, "shards at both runners")
    await keep(cluster, 0.1)

    async def looked() -> bool:
        return len(purging) > 3

    purging.clear()
    await soon(looked, "purges")
    assert len(set(purging)) == 1
    (first_shard,) = await cluster.rows("SELECT first_shard FROM shard_group")
    (owner,) = [member for member in members if first_shard in member.life.shards]
    await cluster.crash(owner)
    gone = purging[-1]

    async def by_another() -> bool:
        return bool(purging) and purging[-1] is not gone

    await soon(by_another, "purges of the other one")


async def test_a_purge_that_fails_is_tried_again(
    cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 2
    purge = Retention.purge

    async def failing(self: Retention, *arguments: Any) -> Purged:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError("cut off")
        return await purge(self, *arguments)

    monkeypatch.setattr(Retention, "purge", failing)
    app = cluster.app()
    probe = cluster.actor(app, Probe).at("a")
    await cluster.start(app)
    await probe.note("x")
    await keep(cluster, 0.1)

    async def gone() -> bool:
        return await cluster.requests() == 0

    await soon(gone, "a purge")
    assert "purge.failed: cut off; what is due is kept until then" in caplog.text
