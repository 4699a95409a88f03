"""A runner's end of the link to its worker (see report)."""

import asyncio
import os
import socket

from entityq_cli.report import Report, encode_report

# Seconds.
_DEADLINE = 5.0


class Link:
    """`descriptor` is the inherited socket."""

    def __init__(self, descriptor: int) -> None:
        # A program that a handler starts must not keep the link open.
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        # With a timeout: `closed` makes the descriptor non-blocking, and sending must work all the same.
        self._socket.settimeout(_DEADLINE)

    def send(self, report: Report) -> None:
        """A worker that is gone is not an error: `closed` tells."""
        try:
            self._socket.sendall(encode_report(report))
        except OSError:
            return

    async def closed(self) -> None:
        """Returns when the worker is gone: it never writes."""
        reader, writer = await asyncio.open_unix_connection(sock=self._socket.dup())
        try:
            await reader.read()
        except ConnectionResetError:
            return
        finally:
            writer.close()
