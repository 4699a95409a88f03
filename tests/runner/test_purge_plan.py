import random

from entityq.postgres.retention import Terms
from entityq.runner.purge_plan import HEAD_START, PurgePlan, Stretch, id_at, lag
from entityq.snowflake import EPOCH_MS, Snowflakes

NOW = EPOCH_MS / 1000 + 10_000_000.0
DAY = 86_400.0


def look(plan: PurgePlan, now: float, *kept: float) -> list[Stretch]:
    """All of it, whole."""
    found = plan.stretches(Terms(now, kept))
    for stretch in found:
        plan.done(stretch, stretch.until, whole=True)
    return found


def test_the_smallest_id_of_a_moment() -> None:
    ids = Snowflakes(0, clock=lambda: NOW)
    assert id_at(NOW) == ids.new()
    assert id_at(0) == 0


def test_a_new_purger_looks_at_recent_ones_first_and_then_at_all() -> None:
    assert PurgePlan().stretches(Terms(NOW, (DAY, 7 * DAY))) == [
        Stretch(id_at(NOW - DAY - 60 - HEAD_START), id_at(NOW - DAY - 60), DAY),
        Stretch(id_at(NOW - 7 * DAY - 60 - HEAD_START), id_at(NOW - 7 * DAY - 60), 7 * DAY),
        Stretch(0, id_at(NOW - DAY), None),
    ]


def test_a_front_goes_with_the_clock_and_a_round_begins_now_and_then() -> None:
    plan = PurgePlan()
    look(plan, NOW, DAY)
    assert look(plan, NOW, DAY) == []
    assert look(plan, NOW + 5, DAY) == [Stretch(id_at(NOW - DAY - 60), id_at(NOW - DAY - 55), DAY)]
    assert [stretch.front for stretch in look(plan, NOW + DAY / 10, DAY)] == [DAY, None]


def test_what_is_not_whole_goes_on_where_it_was() -> None:
    plan = PurgePlan()
    terms = Terms(NOW, (DAY,))
    front, round_ = plan.stretches(terms)
    plan.done(front, front.after + 5, whole=False)
    plan.done(round_, 7, whole=False)
    assert plan.stretches(terms) == [
        Stretch(front.after + 5, front.until, DAY),
        Stretch(7, round_.until, None),
    ]
    # A round that is under way is gone on with, whatever the time.
    assert plan.stretches(Terms(NOW + 9 * DAY, (DAY,)))[-1] == Stretch(7, round_.until, None)


def test_a_term_that_is_declared_later_has_a_front_of_its_own() -> None:
    plan = PurgePlan()
    look(plan, NOW, DAY)
    assert [stretch.front for stretch in look(plan, NOW + 1, DAY, 2 * DAY)] == [DAY, 2 * DAY]
    assert [stretch.front for stretch in look(plan, NOW + 2, 2 * DAY)] == [2 * DAY]


def test_short_terms_are_kept_by_little_more() -> None:
    assert (lag(5.0), lag(600.0), lag(7 * DAY)) == (0.5, 60.0, 60.0)


def test_whatever_the_pages_nothing_is_left_behind() -> None:
    """Against a model: every id of a group is looked at by the front of each term, or by a round, once due."""
    draw = random.Random(7)
    for _ in range(50):
        plan, now, ids = PurgePlan(), NOW, [id_at(NOW - draw.uniform(0, 3 * DAY)) for _ in range(200)]
        due = {each for each in ids if each <= id_at(NOW - DAY)}
        for _ in range(2_000):
            now += draw.uniform(0, 2)
            for stretch in plan.stretches(Terms(now, (DAY, 2 * DAY))):
                part = sorted(each for each in ids if stretch.after < each <= stretch.until)
                page = part[: draw.randrange(1, 20)]
                due.difference_update(page)
                plan.done(stretch, page[-1] if page else stretch.after, whole=len(page) == len(part))
        assert not due
