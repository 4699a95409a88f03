"""Sends to a shard group that `entityq reshard` has closed: they wait in the order in which they were sent.

The first that was refused tries again for all of them; when the group is open, the others follow at once.
"""

import asyncio
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from entityq.client.send import Acceptance, Held, Send
from entityq.client.settlement import group_closed
from entityq.errors import Accepted

Outcome = asyncio.Future[Acceptance | Held]


@dataclass(slots=True, order=True)
class _Waiting:
    number: int
    send: Send = field(compare=False)
    outcome: Outcome = field(compare=False)
    refusal: asyncio.TimerHandle = field(compare=False)


@dataclass(slots=True, eq=False)
class _Queue:
    first: Send
    waiting: list[_Waiting] = field(default_factory=list[_Waiting])


class ClosedGroups:
    """`submit` gives a send to the next batch; sends are numbered in their order."""

    def __init__(self, submit: Callable[[Send], Outcome]) -> None:
        self._submit = submit
        self._queues: dict[str, _Queue] = {}

    def submit(self, send: Send, number: int, until: float) -> Outcome:
        """At once, or behind those that were sent before. `until` is a time of the loop: who still waits then
        fails with GroupClosed."""
        queue = self._queues.get(_group(send))
        if queue is None or queue.first is send:
            return self._submit(send)
        loop = asyncio.get_running_loop()
        outcome: Outcome = loop.create_future()
        refusal = loop.call_at(until, _refuse, outcome, send)
        outcome.add_done_callback(lambda _: refusal.cancel())
        insort(queue.waiting, _Waiting(number, send, outcome, refusal))
        return outcome

    def refused(self, send: Send) -> bool:
        """Its group is closed. Whether it is the one that tries again: it must call `settled`, whatever comes."""
        return self._queues.setdefault(_group(send), _Queue(send)).first is send

    def settled(self, send: Send, *, closed: bool) -> None:
        """It waits no more; `closed`: as far as it knows, the group still is."""
        group = _group(send)
        queue = self._queues.get(group)
        if queue is None or queue.first is not send:
            return
        left = [waiting for waiting in queue.waiting if not waiting.outcome.done()]
        now = left[:1] if closed else left
        if closed and left:
            queue.first, queue.waiting = left[0].send, left[1:]
        else:
            del self._queues[group]
        for waiting in now:
            self._follow(waiting)

    def _follow(self, waiting: _Waiting) -> None:
        # It may be stored from now on: nobody but its batch can say that it is not.
        waiting.refusal.cancel()
        inner, outcome = self._submit(waiting.send), waiting.outcome

        def tell(_: Outcome) -> None:
            error = None if inner.cancelled() else inner.exception()
            if outcome.done() or inner.cancelled():
                return
            if error is None:
                outcome.set_result(inner.result())
            else:
                outcome.set_exception(error)

        inner.add_done_callback(tell)


def _group(send: Send) -> str:
    return send.call.entity.shard_group


def _refuse(outcome: Outcome, send: Send) -> None:
    if not outcome.done():
        accepted = Accepted.UNKNOWN if send.lost else Accepted.NO
        outcome.set_exception(
            group_closed(_group(send), accepted=accepted, request_id=send.request.request_id)
        )
