"""Runner health by `ping`: asks peers over the control channel, and answers them."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from entityq.postgres.membership import Member
from entityq.redis.control import ControlChannel, ControlMessage
from entityq.redis.deadline import deadline
from entityq.runner.health import Judgement
from entityq.runner.pings import Pings, answer

# Everybody hears every ping and pong: a runner hears at most 40 of them a second, however many runners there are.
_SECONDS_PER_RUNNER = 0.05
_MAX_WAITING = 100


class PingCheck:
    """A peer that does not answer pings in time, several times in a row, is unhealthy."""

    def __init__(self, control: ControlChannel, me: int, *, lease_time: float) -> None:
        self._control = control
        self._pings = Pings(me)
        self._pause = lease_time / 2
        self._patience = lease_time / 5

    def pause(self, runners: int) -> float:
        return max(self._pause, runners * _SECONDS_PER_RUNNER)

    async def look(self, peers: Sequence[Member]) -> Mapping[int, Judgement]:
        """Takes until all have answered, a fifth of the lease time at most."""
        answered = asyncio.Event()

        def hear(message: ControlMessage) -> None:
            if self._pings.hear(message):
                answered.set()

        pings = self._pings.begin([peer.incarnation for peer in peers])
        with self._control.listening(hear):
            for ping in pings:
                await self._control.publish(ping)
            with suppress(TimeoutError):
                async with deadline(self._patience):
                    await answered.wait()
        return self._pings.end()


class PingAnswers:
    """Answers pings on the runner's own event loop, whatever its own check is: that is what they ask."""

    def __init__(self, control: ControlChannel, me: int) -> None:
        self._control = control
        self._me = me
        self._waiting: asyncio.Queue[ControlMessage] = asyncio.Queue(_MAX_WAITING)

    async def run(self) -> None:
        with self._control.listening(self._hear):
            while True:
                await self._control.publish(await self._waiting.get())

    def _hear(self, message: ControlMessage) -> None:
        pong = answer(self._me, message)
        if pong is not None and not self._waiting.full():
            self._waiting.put_nowait(pong)
