import asyncio

from hypothesis import given
from hypothesis import strategies as st

from entityq.address import Address, entity_hash, signed64
from entityq.runner.deferrals import Deferrals

A, B, C = (Address("Account", name) for name in "abc")


def test_a_read_that_returned_everything_ends_the_deferral() -> None:
    deferrals = Deferrals()
    deferrals.defer(1, A)
    deferrals.begin_read(1, A)
    assert deferrals.end_read(1, A, everything=True)
    assert (1, A) not in deferrals
    assert deferrals.hashes(1) == set()


def test_what_is_dropped_after_the_read_was_sent_is_not_in_it() -> None:
    deferrals = Deferrals()
    deferrals.defer(1, A)
    deferrals.begin_read(1, A)
    deferrals.defer(1, A)
    assert not deferrals.end_read(1, A, everything=True)
    assert (1, A) in deferrals
    deferrals.begin_read(1, A)
    assert deferrals.end_read(1, A, everything=True)


def test_a_read_that_did_not_return_everything_does_not_end_it() -> None:
    deferrals = Deferrals()
    deferrals.defer(1, A)
    deferrals.begin_read(1, A)
    assert not deferrals.end_read(1, A, everything=False)
    assert (1, A) in deferrals
    assert (2, A) not in deferrals


def test_those_without_a_place_let_others_go_first() -> None:
    deferrals = Deferrals()
    for address in (A, B, C):
        deferrals.defer(1, address)
    assert deferrals.oldest(2) == [(1, A), (1, B)]
    deferrals.postpone(1, A)
    assert deferrals.oldest(3) == [(1, B), (1, C), (1, A)]
    deferrals.postpone(7, A)
    assert len(deferrals) == 3


def test_a_shard_that_is_given_up_takes_its_own_along() -> None:
    deferrals = Deferrals()
    deferrals.defer(1, A)
    deferrals.defer(2, A)
    deferrals.defer(1, B)
    assert deferrals.hashes(1) == {signed64(entity_hash("a")), signed64(entity_hash("b"))}
    deferrals.drop_shard(1)
    assert deferrals.oldest(9) == [(2, A)]
    # A read that was under way for it ends nothing.
    assert deferrals.end_read(1, A, everything=False)


async def test_reading_stops_when_too_many_entities_are_deferred() -> None:
    deferrals = Deferrals(limit=4)
    for number in range(4):
        deferrals.defer(1, Address("Account", str(number)))
    waiting = asyncio.ensure_future(deferrals.below_limit())
    for number in range(2):
        assert not waiting.done()
        address = Address("Account", str(number))
        deferrals.begin_read(1, address)
        assert deferrals.end_read(1, address, everything=True)
        await asyncio.sleep(0)
    await waiting
    for number in range(4):
        deferrals.defer(1, Address("Account", str(number)))
    waiting = asyncio.ensure_future(deferrals.below_limit())
    await asyncio.sleep(0)
    assert not waiting.done()
    deferrals.drop_shard(1)
    await waiting


STEPS = st.sampled_from(
    ["defer", "feed", "begin_read", "all read", "not all read", "postpone", "drop_shard", "hashes"]
)


@given(steps=st.lists(st.tuples(STEPS, st.integers(1, 2), st.sampled_from([A, B])), max_size=30))
def test_the_hashes_of_a_shard_are_those_of_its_entities(steps: list[tuple[str, int, Address]]) -> None:
    deferrals = Deferrals()
    for step, shard_id, address in steps:
        match step:
            case "defer":
                deferrals.defer(shard_id, address)
            case "feed":
                deferrals.begin_read(shard_id, address)
                assert deferrals.end_read(shard_id, address, everything=True)
            case "begin_read":
                deferrals.begin_read(shard_id, address)
            case "postpone":
                deferrals.postpone(shard_id, address)
            case "drop_shard":
                deferrals.drop_shard(shard_id)
            case "hashes":
                deferrals.hashes(shard_id)
            case _:
                deferrals.end_read(shard_id, address, everything=step == "all read")
        entities = deferrals.oldest(10)
        for shard in (1, 2):
            addresses = [each for number, each in entities if number == shard]
            assert deferrals.hashes(shard) == {signed64(entity_hash(each.id)) for each in addresses}
        if step == "drop_shard":
            assert all(number != shard_id for number, _ in entities)
