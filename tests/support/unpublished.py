"""What a client leaves behind that dies between its insert and its publish."""

from typing import Any

from entityq import Entity, EntityQ
from entityq.address import Address
from entityq.call import CallOptions, new_call
from entityq.client.client import Client
from entityq.postgres.connect import connect
from entityq.postgres.outbox import NewRequest, Stored, insert_requests
from tests.support.servers import SCHEMA


def request_of(app: EntityQ, client: Client, handle: Entity, message: str, **arguments: Any) -> NewRequest:
    definition = handle.__definition__
    address = Address(definition.type, handle.id)
    call = new_call(
        definition,
        definition.messages[message],
        lambda _: address,
        args=(),
        kwargs=arguments,
        options=CallOptions(),
        serializer=app.serializer,
    )
    return client.new_request(call)


async def insert_unpublished(app: EntityQ, *requests: NewRequest) -> dict[int, Stored]:
    """Committed, and in no stream."""
    settings = app.settings
    assert settings.postgres_url
    async with await connect(settings.postgres_url, schema=SCHEMA, application_name="tests") as connection:
        return await insert_requests(connection, settings.namespace, requests)
