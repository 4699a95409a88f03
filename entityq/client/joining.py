"""Requests that join a transaction of the caller's own: what is to be executed, and what its rows mean.

Without input and output: a generator of statements, which takes their rows. The connections are in
entityq.integrations.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

from entityq.call import Call
from entityq.client.encoding import new_request
from entityq.client.many import Many, parts, refuse_too_many
from entityq.client.send import Acceptance, Send
from entityq.client.settlement import Again, group_closed, index, judge, unknown_type
from entityq.context import test_home
from entityq.envelope import NOBODY
from entityq.errors import EntityQError, MailboxFull
from entityq.ports import BatchOutcome, Home
from entityq.postgres.joined import Joined, Placed, Rows, Statement, known, placed
from entityq.postgres.outbox import NewRequest
from entityq.receipt import Receipt
from entityq.request import Request, calls_of
from entityq.sent import Sent

Steps = Generator[Statement, Rows, list[BatchOutcome]]

# A request that meets what it then cannot find is inserted again so often.
MAX_VANISHED = 3


def joining(requests: Sequence[Request[Any]]) -> Steps:
    """One outcome per request, in order. They are of one app.

    Raises MalformedMessage for a volatile message, PayloadTooLarge for too many, PersistenceError for a type that
    the cluster does not have and for a closed group, MailboxFull.
    """
    if not requests:
        return []
    calls = calls_of(requests[0].home, requests)
    return (yield from _Joining(test_home.get() or requests[0].home).steps(calls))


class _Joining:
    def __init__(self, home: Home) -> None:
        settings = home.settings
        self._home = home
        self._namespace = settings.namespace
        self._statements = Joined(settings.schema, settings.namespace, settings.max_pending)
        self._outcomes: dict[Send, BatchOutcome] = {}

    def steps(self, calls: Sequence[Call]) -> Steps:
        sends = [Send(call, self._new_request(call), 0.0) for call in calls]
        refuse_too_many(Many(sends, 0.0))
        for part in parts(sends):
            left = part
            for _ in range(MAX_VANISHED):
                left = yield from self._insert(left)
                if left:
                    left = yield from self._explain(left)
                if not left:
                    break
            else:
                raise _vanished(left[0])
        return [self._outcomes[send] for send in sends]

    def _insert(self, sends: Sequence[Send]) -> Generator[Statement, Rows, list[Send]]:
        """Returns those that have met something."""
        # First: a test client has none, and refuses.
        receipts = {send: self._receipt(send, send.request.request_id) for send in sends}
        requests = [send.request for send in sends]
        rows = placed((yield self._statements.insert(requests)))
        for send in sends:
            _refuse(send, rows[send.request.request_id], self._namespace)
        if any(row.isolation != "read committed" for row in rows.values()):
            yield self._statements.hold_groups(requests)
        self._outcomes.update(
            {send: receipt for send, receipt in receipts.items() if rows[send.request.request_id].stored}
        )
        return [send for send in sends if send not in self._outcomes]

    def _explain(self, sends: Sequence[Send]) -> Generator[Statement, Rows, list[Send]]:
        """Returns those that are to be inserted again."""
        met = index(known((yield self._statements.read_known([send.request for send in sends]))))
        for send in sends:
            verdict = judge(send, met)
            if isinstance(verdict, Acceptance):
                self._outcomes[send] = self._receipt(send, verdict.request_id, duplicate=True)
            elif isinstance(verdict, EntityQError):
                self._outcomes[send] = verdict
            elif verdict is Again.COLLISION:
                send.request = self._new_request(send.call)
        return [send for send in sends if send not in self._outcomes]

    def _new_request(self, call: Call) -> NewRequest:
        return new_request(self._namespace, NOBODY, self._home.new_id(), call)

    def _receipt(self, send: Send, request_id: int, *, duplicate: bool = False) -> Receipt[Any]:
        return self._home.receipt(send.call, request_id, duplicate=duplicate)


def _refuse(send: Send, row: Placed, namespace: str) -> None:
    """Raises what keeps the whole statement from storing anything."""
    if row.group is None:
        raise unknown_type(send.request.address.type, namespace)
    if not row.open:
        raise group_closed(row.group)
    if not row.room:
        raise MailboxFull(
            f"Shard group {row.group} has too many unanswered requests (max_pending)",
            advice="Send it again later, or start more workers.",
        )


def _vanished(send: Send) -> EntityQError:
    return EntityQError(
        f"{send.request.message} to {send.request.address} cannot be stored: what it meets is gone again",
        advice="Send it again, in another transaction.",
    )


# ----- for connections


def join(requests: Sequence[Request[Any]], execute: Callable[[Statement], Rows]) -> list[Sent[Any]]:
    """Raises what `joining` and `execute` do."""
    steps = joining(requests)
    try:
        statement = next(steps)
        while True:
            statement = steps.send(execute(statement))
    except StopIteration as end:
        return [Sent(outcome) for outcome in end.value]


async def join_async(
    requests: Sequence[Request[Any]], execute: Callable[[Statement], Awaitable[Rows]]
) -> list[Sent[Any]]:
    """The same for a connection that is awaited."""
    steps = joining(requests)
    try:
        statement = next(steps)
        while True:
            statement = steps.send(await execute(statement))
    except StopIteration as end:
        return [Sent(outcome) for outcome in end.value]
