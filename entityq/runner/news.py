"""What members tell each other of their coming and going, so that nobody has to find it out by polling."""

import asyncio

from entityq.redis.control import ControlChannel, ControlMessage
from entityq.runner.heart import Heart


class News:
    """Of one incarnation, by the control channel. Who misses it finds it out by polling."""

    def __init__(self, heart: Heart, control: ControlChannel) -> None:
        self._heart = heart
        self._control = control
        self._ended = asyncio.Queue[int]()

    def ended(self, incarnation: int) -> None:
        """All others are to look at once."""
        self._ended.put_nowait(incarnation)

    async def tell_of_ends(self) -> None:
        while True:
            incarnation = await self._ended.get()
            await self._control.publish(ControlMessage("died", {"incarnation": incarnation}))

    async def hear_of_joins(self) -> None:
        """One that ends before the heart has read it would be found out by polling."""

        def hear(message: ControlMessage) -> None:
            incarnation = message.fields.get("incarnation")
            # Comes from outside, and can be anything.
            if message.kind == "joined" and isinstance(incarnation, int) and 0 < incarnation < 1 << 63:
                self._heart.joined(incarnation)

        with self._control.listening(hear):
            await asyncio.Event().wait()
