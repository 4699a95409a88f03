"""What a runner should do about the leases: decided from plain values, without a loop or a server."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from entityq.postgres.facts import Group
from entityq.postgres.membership import Member
from entityq.runner.assignment import Candidate, assign

# Seconds.
FIRST_RETRY = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """Shard ids, ascending."""

    acquire: Sequence[int] = ()
    give_up: Sequence[int] = ()


def owners(members: Iterable[Member], groups: Iterable[Group]) -> dict[int, int]:
    """The incarnation that should own each shard; shards of a group that nobody serves are left out.

    An unhealthy runner is given none, unless all that serve the group are: a check that is itself broken must
    not take the shards from everybody. Of two in one place the older one is about to be replaced.
    """
    staying = followers(member for member in members if not member.draining)
    assigned: dict[int, int] = {}
    for group in groups:
        serving = [member for member in staying if group.name in member.groups]
        candidates = [
            Candidate(member.incarnation, member.weight, member.known_types(group.name), member.place)
            for member in [member for member in serving if member.healthy] or serving
        ]
        assigned |= assign(range(group.first_shard, group.first_shard + group.shards), candidates)
    return assigned


def followers(members: Iterable[Member]) -> list[Member]:
    """Without those whose place a later member has."""
    latest: dict[str, Member] = {}
    for member in sorted(members, key=lambda member: member.incarnation):
        latest[member.place or str(member.incarnation)] = member
    return list(latest.values())


def closed(held: Iterable[int], groups: Iterable[Group]) -> set[int]:
    """The shards of none of these groups, which are all that are open."""
    ranges = [range(group.first_shard, group.first_shard + group.shards) for group in groups]
    return {shard for shard in held if not any(shard in shards for shards in ranges)}


def plan(
    me: int,
    assigned: Mapping[int, int],
    held: Set[int],
    leaving: Set[int],
    closed: Set[int] = frozenset(),
) -> Plan:
    """`held`: shards whose lock this runner has, `leaving`: those of them that it is giving up already.

    A shard that is assigned to nobody is kept, because nobody else would serve it, unless its group is closed.
    """
    return Plan(
        acquire=sorted(shard for shard, owner in assigned.items() if owner == me and shard not in held),
        give_up=sorted(shard for shard in held - leaving if shard in closed or assigned.get(shard, me) != me),
    )


def retry(before: float | None, *, missed: bool, changed: bool, poll: float) -> float | None:
    """Seconds until the next look after one that `missed` a shard, because somebody still had its lock.

    Its owner's session may be ending, or the owner's word may be lost: look again soon, and less and less often
    up to `poll`, because a turn may have to end first. None: nothing was missed. `changed`: the members are not
    those of the look before, `before`: what that one came to.
    """
    if not missed:
        return None
    return min(poll, FIRST_RETRY if changed or before is None else before * 2)
