"""Bringing a database's schema up to date."""

from entityq.config import Servers, Settings
from entityq.postgres.connect import connect
from entityq.postgres.migrate import Migration, migrate
from entityq.postgres.safety import check_server


async def migrate_servers(servers: Servers, settings: Settings) -> list[Migration]:
    """What was applied now. Makes the namespace's cluster. Raises UnsafeConfiguration, PersistenceError."""
    # The lease URL: no pooler in between.
    async with await connect(servers.lease_url, schema=settings.schema) as connection:
        await check_server(connection)
        return await migrate(
            connection, schema=settings.schema, namespace=settings.namespace, shards=settings.shards
        )
