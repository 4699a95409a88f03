"""A proxy that knows which statement passes, from the frontend protocol 3.0.

Its unit is the round: what a process sends until Sync (or one simple query), and what the server answers until
ReadyForQuery. psycopg waits for each round, so a round is a step.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Mapping

from tests.crash_points.gate import Gate
from tests.crash_points.proxy import Link
from tests.crash_points.statements import name_of

_CANCEL_REQUEST = 80877102
_HEAD = 5  # a type and a length that counts itself

CONNECT = "connect"
NOTIFICATION = "notification"
PREPARE = "prepare "


class PostgresLink(Link):
    """One connection. Preparing a statement is a step of its own."""

    def __init__(self, gate: Gate, server: str, names: Mapping[bytes, str]) -> None:
        super().__init__(gate, server)
        self._names = names
        self._started = False
        self._sent = bytearray()  # not cut into messages yet
        self._round = bytearray()  # messages whose Sync has not come yet
        self._step = ""
        self._prepared: dict[bytes, str] = {}
        self._under_way: deque[str] = deque()
        self._said = bytearray()
        self._answer = bytearray()

    # ----- from the process

    async def requests(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        self._sent += data
        while (message := self._next_message()) is not None:
            await self._request(message, writer)

    def _next_message(self) -> bytes | None:
        head = _HEAD if self._started else _HEAD - 1
        if len(self._sent) < head:
            return None
        (length,) = struct.unpack_from("!I", self._sent, head - 4)
        size = length + head - 4
        if len(self._sent) < size:
            return None
        message = bytes(self._sent[:size])
        del self._sent[:size]
        return message

    async def _request(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        if not self._started:
            self._started = True
            if struct.unpack_from("!I", message, 4)[0] != _CANCEL_REQUEST:
                self._under_way.append(CONNECT)
                await self.reach(CONNECT, "before")
            writer.write(message)
            return
        self._round += message
        match message[:1]:
            case b"P":
                name, text, _ = message[_HEAD:].split(b"\0", 2)
                self._prepared[name] = name_of(text, self._names)
                self._step = PREPARE + self._prepared[name]
            case b"B":
                _, name, _ = message[_HEAD:].split(b"\0", 2)
                self._step = self._prepared[name]
            case b"Q":
                self._step = name_of(message[_HEAD:-1], self._names)
                await self._send_round(writer)
            case b"S":
                await self._send_round(writer)
            case b"p" | b"X" | b"H":  # password, the end, flush
                self._pass_on(writer)
            case _:
                pass

    async def _send_round(self, writer: asyncio.StreamWriter) -> None:
        step, self._step = self._step, ""
        await self.reach(step, "before")
        self._under_way.append(step)
        self._pass_on(writer)

    def _pass_on(self, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(self._round))
        self._round.clear()

    # ----- from the server

    async def answers(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        self._said += data
        while len(self._said) >= _HEAD:
            (length,) = struct.unpack_from("!I", self._said, 1)
            if len(self._said) <= length:
                return
            message = bytes(self._said[: length + 1])
            del self._said[: length + 1]
            await self._answered(message, writer)

    async def _answered(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        if not self._under_way:  # a notification, or the server ends the session
            if message[:1] == b"A":
                await self.reach(NOTIFICATION, "after")
            writer.write(message)
            return
        self._answer += message
        if message[:1] == b"Z":
            await self.reach(self._under_way.popleft(), "after")
            self._flush(writer)
        elif message[:1] == b"R" and len(message) > _HEAD + 4 - 1 and self._under_way[0] == CONNECT:
            # A question about the password must not wait for its answer.
            self._flush(writer)

    def _flush(self, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(self._answer))
        self._answer.clear()
