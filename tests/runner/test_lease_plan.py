"""What to acquire and what to give up, decided without servers."""

from hypothesis import given
from hypothesis import strategies as st

from entityq.postgres.facts import Group
from entityq.postgres.membership import Member
from entityq.runner.lease_plan import FIRST_RETRY, Plan, closed, owners, plan, retry

DEFAULT = Group("default", 1, 10, 0)
MAIL = Group("mail", 2, 10, 10)


def member(
    incarnation: int, *groups: str, draining: bool = False, healthy: bool = True, place: str = ""
) -> Member:
    return Member(
        incarnation=incarnation,
        number=incarnation,
        name="runner",
        pid=incarnation,
        groups=frozenset(groups),
        types=frozenset(),
        weight=1.0,
        draining=draining,
        groups_of_types=(),
        healthy=healthy,
        place=place,
    )


def test_shards_go_to_runners_that_serve_their_group() -> None:
    assigned = owners([member(1, "default"), member(2, "default", "mail")], [DEFAULT, MAIL])
    assert set(assigned) == set(range(20))
    assert {assigned[shard] for shard in range(10)} == {1, 2}
    assert {assigned[shard] for shard in range(10, 20)} == {2}


def test_a_draining_runner_is_given_nothing() -> None:
    assert set(owners([member(1, "default", draining=True), member(2, "default")], [DEFAULT]).values()) == {2}


def test_who_follows_another_one_in_its_place_gets_its_shards_and_gives_them_back() -> None:
    before = [member(number, "default", place=f"place {number}") for number in (1, 2, 3)]
    replacing = [*before, member(4, "default", place="place 2")]
    assigned = owners(before, [DEFAULT])
    assert owners(replacing, [DEFAULT]) == {
        shard: 4 if owner == 2 else owner for shard, owner in assigned.items()
    }
    replaced = [runner for runner in replacing if runner.incarnation != 2]
    assert owners(replaced, [DEFAULT]) == owners(replacing, [DEFAULT])
    assert owners(before, [DEFAULT]) == assigned, "should the new one end at once"


def test_an_unhealthy_runner_is_given_nothing_where_a_healthy_one_serves() -> None:
    runners = [
        member(1, "default", healthy=False),
        member(2, "default"),
        member(3, "mail", healthy=False),
        member(4, "mail", healthy=False),
        member(5, "mail", draining=True),
    ]
    assigned = owners(runners, [DEFAULT, MAIL])
    assert {assigned[shard] for shard in range(10)} == {2}
    assert {assigned[shard] for shard in range(10, 20)} == {3, 4}


def test_shards_of_a_group_that_nobody_serves_are_assigned_to_nobody_and_kept() -> None:
    assigned = owners([member(1, "default", draining=True), member(2, "mail")], [DEFAULT, MAIL])
    assert set(assigned) == set(range(10, 20))
    assert plan(1, assigned, held=set(range(10)), leaving=set()) == Plan([], [])


def test_what_is_held_is_not_acquired_again_and_what_leaves_is_not_given_up_again() -> None:
    assigned = {1: 7, 2: 7, 3: 8, 4: 8, 5: 7}
    assert plan(7, assigned, held={1, 3, 4}, leaving={4}) == Plan(acquire=[2, 5], give_up=[3])


def test_a_shard_that_comes_back_while_it_leaves_is_acquired_only_after_it_has_left() -> None:
    assert plan(7, {1: 7}, held={1}, leaving={1}) == Plan([], [])
    assert plan(7, {1: 7}, held=set(), leaving=set()) == Plan(acquire=[1], give_up=[])


@given(
    st.dictionaries(st.integers(0, 30), st.integers(1, 4)),
    st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 30)),
)
def test_plans_meet_the_assignment(assigned: dict[int, int], held: set[int], leaving: set[int]) -> None:
    todo = plan(1, assigned, held, leaving & held)
    after = (held | set(todo.acquire)) - set(todo.give_up) - (leaving & held)
    mine = {shard for shard, owner in assigned.items() if owner == 1}
    unserved = held - assigned.keys()
    assert after == (mine | unserved) - (leaving & held)
    assert set(todo.acquire).isdisjoint(held)
    assert set(todo.give_up) <= held - leaving


def test_shards_of_a_closed_group_are_given_up_whoever_would_have_them() -> None:
    assert closed({1, 12, 25}, [DEFAULT, MAIL]) == {25}
    assert closed({1, 12}, [MAIL]) == {1}
    assert plan(7, {1: 7}, held={1, 2, 3}, leaving={3}, closed={2, 3}) == Plan([], [2])


def test_a_look_that_missed_a_shard_is_repeated_soon_and_then_less_and_less_often() -> None:
    pauses: list[float | None] = [None]
    for _ in range(7):
        pauses.append(retry(pauses[-1], missed=True, changed=False, poll=0.5))
    assert pauses[1:] == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    assert retry(0.5, missed=True, changed=True, poll=0.5) == FIRST_RETRY
    assert retry(0.5, missed=False, changed=True, poll=0.5) is None
    assert retry(None, missed=True, changed=True, poll=0.01) == 0.01
