"""Whether the streams can be read, for those who do their work instead while they cannot."""

import asyncio


class Availability(asyncio.Event):
    """An event that can also be waited for to be cleared."""

    def __init__(self) -> None:
        super().__init__()
        self._cleared = asyncio.Event()
        self._cleared.set()

    def set(self) -> None:
        super().set()
        self._cleared.clear()

    def clear(self) -> None:
        super().clear()
        self._cleared.set()

    async def wait_cleared(self) -> None:
        await self._cleared.wait()
