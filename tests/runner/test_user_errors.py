"""What code of users may raise: a defect of its turn, and of nothing else."""

import asyncio
import sys

import pytest

from entityq import EntityDefect, message
from tests.support.live import LiveCluster
from tests.support.stage import Actor


class Rude(Actor):
    turns: int = 0

    async def on_activate(self) -> None:
        if self.id == "cancelled":
            await cancelled()
        if self.id == "exits":
            sys.exit(1)

    @message
    async def step(self) -> int:
        self.turns += 1
        return self.turns

    @message
    async def exit(self) -> None:
        self.turns += 1
        sys.exit(1)

    @message
    def exit_in_thread(self) -> None:
        self.turns += 1
        sys.exit(1)

    @message
    async def cancel(self) -> None:
        self.turns += 1
        await cancelled()

    @message(persisted=False)
    async def exit_volatile(self) -> None:
        sys.exit(1)


async def cancelled() -> None:
    inner = asyncio.create_task(asyncio.Event().wait())
    inner.cancel()
    await inner


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("exit", "SystemExit"),
        ("exit_in_thread", "SystemExit"),
        ("exit_volatile", "SystemExit"),
        ("cancel", "CancelledError"),
    ],
)
async def test_a_handler_that_exits_or_is_cancelled_inside_is_a_defect(
    cluster: LiveCluster, name: str, error: str
) -> None:
    app = cluster.app()
    rude = cluster.actor(app, Rude).at("a")
    member = await cluster.start(app)
    with pytest.raises(EntityDefect, match=error):
        await getattr(rude, name)()
    assert await rude.step() == 1
    assert not member.task.done()


@pytest.mark.parametrize(("entity_id", "error"), [("cancelled", "CancelledError"), ("exits", "SystemExit")])
async def test_an_on_activate_that_exits_or_is_cancelled_inside_is_a_defect(
    cluster: LiveCluster, entity_id: str, error: str
) -> None:
    app = cluster.app()
    rude = cluster.actor(app, Rude)
    member = await cluster.start(app)
    for _ in range(2):
        with pytest.raises(EntityDefect, match=error):
            await rude.at(entity_id).step()
    assert await cluster.pending() == 0
    assert await rude.at("a").step() == 1
    assert not member.task.done()
