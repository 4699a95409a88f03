"""Requests in transactions of Django.

    with transaction.atomic():
        order.save()
        receipt = send(account.deposit.request(10, reference="r-1"))

The request is sent when the transaction commits, and never if it is rolled back: no `on_commit`, which is lost when
the process dies between the commit and the send.
"""

from collections.abc import Sequence
from typing import TypeVar

from django.db import connections

from entityq.client.joining import join
from entityq.errors import UnsafeConfiguration
from entityq.postgres.joined import Rows, Statement
from entityq.receipt import Receipt
from entityq.request import Request
from entityq.sent import Sent

R = TypeVar("R")


def send(request: Request[R], *, using: str = "default") -> Receipt[R]:
    """In the current transaction of a database of the settings; without one, in one of its own.

    Waits for somebody else's transaction that has stored the same primary key and has not ended. The receipt can be
    waited for after the commit. Raises PrimaryKeyConflict, ReplyExpired, MalformedMessage, MailboxFull,
    PersistenceError, which leave the transaction as it was, UnsafeConfiguration for another database than
    PostgreSQL, and django.db.Error.
    """
    return send_many([request], using=using)[0].receipt


def send_many(requests: Sequence[Request[R]], *, using: str = "default") -> list[Sent[R]]:
    """Many at once, in their order; one outcome for each, as of `app.send_many`."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        raise UnsafeConfiguration(
            f"A request cannot join a transaction of the Django database {using}, which is {connection.vendor}.",
            advice="It can join one of the PostgreSQL database that has the outbox.",
        )
    with connection.cursor() as cursor:

        def execute(statement: Statement) -> Rows:
            cursor.execute(statement.sql, statement.parameters)
            rows: Rows = cursor.fetchall()
            return rows

        return join(requests, execute)
