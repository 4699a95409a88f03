"""Who watches whom: each runner the one with the next greater incarnation, the last one the first."""

from collections.abc import Collection, Iterator


def peer_of(me: int, alive: Collection[int]) -> int | None:
    """The runner that `me` watches; None when there is no other."""
    return next(after(me, alive), None)


def ended_beside(me: int, before: Collection[int], alive: Collection[int]) -> list[int]:
    """Those that have ended since and that `me` has to tell about: from its own peer to the first one alive.

    Each one that ended is in the stretch of exactly one survivor, also when its watcher ended with it.
    """
    ended: list[int] = []
    for incarnation in after(me, before):
        if incarnation in alive:
            break
        ended.append(incarnation)
    return ended


def after(me: int, incarnations: Collection[int]) -> Iterator[int]:
    """All others, in the order of the ring."""
    others = sorted(incarnation for incarnation in incarnations if incarnation != me)
    yield from (incarnation for incarnation in others if incarnation > me)
    yield from (incarnation for incarnation in others if incarnation < me)
