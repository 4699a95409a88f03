"""The facts of a cluster, in the database: everybody computes shards from them, nobody from configuration."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from uuid import UUID

from psycopg.errors import UndefinedTable

from entityq.address import Address, Shard, entity_hash, shard_number
from entityq.errors import UnsafeConfiguration
from entityq.postgres.connect import Connection
from entityq.postgres.queries import load

_SQL = load("facts.sql")
_INSERT_CLUSTER, _READ_CLUSTER = _SQL["insert_cluster"], _SQL["read_cluster"]
_READ_GROUPS, _READ_TYPES = _SQL["read_groups"], _SQL["read_types"]
_WAIT_LONGER, _LOCK_GROUPS = _SQL["wait_longer"], _SQL["lock_groups"]
_INSERT_GROUPS, _INSERT_SHARDS = _SQL["insert_groups"], _SQL["insert_shards"]
_INSERT_TYPES = _SQL["insert_types"]
_NOTIFY_CHANGED = _SQL["notify_changed"]

# Of what is stored and sent: envelopes, replies, hashes, keys. Frozen; a change is another number.
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Group:
    """A shard group: its shards have the ids first_shard, first_shard + 1, ... in the outbox.

    Not `open`: `entityq reshard` is under way, and nobody may lease its shards or send to it.
    """

    name: str
    group_id: int
    shards: int
    first_shard: int
    open: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What everybody in the cluster agrees on; `types` is the group of each entity type, `signal_key` that of the
    tokens of signals."""

    namespace: str
    cluster_id: UUID
    default_shards: int
    groups: Mapping[str, Group]
    types: Mapping[str, str]
    signal_key: bytes = field(default=b"", repr=False)

    def shard(self, shard_id: int) -> Shard:
        """The shard of an id in the outbox. Raises KeyError for an id of no group."""
        for group in self.groups.values():
            if group.first_shard <= shard_id < group.first_shard + group.shards:
                return Shard(group.name, shard_id - group.first_shard)
        raise KeyError(shard_id)

    def closed(self, types: Iterable[str]) -> bool:
        """Whether one of these types is in a group that `entityq reshard` has closed."""
        groups = [self.groups.get(self.types.get(type_, "")) for type_ in types]
        return any(group is not None and not group.open for group in groups)

    def shard_id(self, address: Address) -> int | None:
        """Where an entity lives; None for a type that the cluster does not have."""
        group = self.groups.get(self.types.get(address.type, ""))
        if group is None:
            return None
        return group.first_shard + shard_number(entity_hash(address.id), group.shards)


async def ensure_cluster(connection: Connection, namespace: str, shards: int) -> None:
    """Create the namespace's cluster where there is none; an existing one keeps its shard count."""
    values = {"namespace": namespace, "format_version": FORMAT_VERSION, "shards": shards}
    await connection.execute(_INSERT_CLUSTER, values)


async def load_facts(connection: Connection, namespace: str) -> Facts:
    """Raises UnsafeConfiguration without a cluster, or with one of a format that this code does not know."""
    where = {"namespace": namespace}
    try:
        cluster = await (await connection.execute(_READ_CLUSTER, where)).fetchone()
    except UndefinedTable:
        cluster = None
    if cluster is None:
        raise UnsafeConfiguration(
            f"There is no cluster with the namespace {namespace} in this database.",
            advice="Run `entityq migrate`, or correct the namespace.",
        )
    cluster_id, format_version, default_shards, signal_key = cluster
    if format_version != FORMAT_VERSION:
        raise UnsafeConfiguration(
            f"The cluster {namespace} stores format {format_version}; this code knows {FORMAT_VERSION}.",
            advice="Install the version of entityq that the other runners have.",
        )
    # Types first: two statements see two states, and a type without its group would be none.
    types = await (await connection.execute(_READ_TYPES, where)).fetchall()
    groups = await (await connection.execute(_READ_GROUPS, where)).fetchall()
    return Facts(
        namespace=namespace,
        cluster_id=cluster_id,
        default_shards=default_shards,
        groups=MappingProxyType({row[0]: Group(*row) for row in groups}),
        types=MappingProxyType(dict(types)),
        signal_key=bytes(signal_key),
    )


async def register_types(connection: Connection, namespace: str, types: Mapping[str, str]) -> Facts:
    """Declare entity types with their groups, and new groups with the cluster's default count of shards.

    Returns the facts with them. Raises UnsafeConfiguration for a type that the cluster has in another group.
    """
    facts = await load_facts(connection, namespace)
    if not unregistered(facts, types):
        return facts
    async with connection.transaction():
        await connection.execute(_WAIT_LONGER)
        await connection.execute(_LOCK_GROUPS)
        # Read again: somebody else may have registered between the first look and the lock.
        facts = await load_facts(connection, namespace)
        missing = unregistered(facts, types)
        await _insert(connection, namespace, missing, sorted(set(missing.values()) - set(facts.groups)))
        await notify_changed(connection, namespace)
        return await load_facts(connection, namespace)


def facts_channel(namespace: str) -> str:
    """Where, by NOTIFY, processes are told to read the facts again. Bounded, as Postgres wants it."""
    return f"entityq:facts:{hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()}"


async def notify_changed(connection: Connection, namespace: str) -> None:
    """With the transaction that changes them."""
    await connection.execute(_NOTIFY_CHANGED, {"channel": facts_channel(namespace)})


def unregistered(facts: Facts, types: Mapping[str, str]) -> dict[str, str]:
    """The types that the cluster does not have yet. Raises UnsafeConfiguration for one in another group."""
    for type_, group in types.items():
        stored = facts.types.get(type_, group)
        if stored != group:
            raise UnsafeConfiguration(
                f"Entity type {type_} belongs to shard group {stored} in the cluster {facts.namespace}, "
                f"and to {group} in this code.",
                advice=f'Write shard_group="{stored}", or move the type and its entities first: '
                f"`entityq reshard --type {type_} --group {group}`.",
            )
    return {type_: group for type_, group in types.items() if type_ not in facts.types}


async def _insert(
    connection: Connection, namespace: str, types: Mapping[str, str], new_groups: list[str]
) -> None:
    names = {"namespace": namespace, "names": new_groups}
    await connection.execute(_INSERT_GROUPS, names)
    await connection.execute(_INSERT_SHARDS, names)
    values = {"namespace": namespace, "types": list(types), "groups": list(types.values())}
    await connection.execute(_INSERT_TYPES, values)
