"""The faults of a seed."""

from itertools import islice
from random import Random

from tests.chaos.deck import GAP, KINDS, Strike, deal
from tests.chaos.faults import EFFECTS
from tests.chaos.operation import ENTITIES, GENERATION, KEYED, keyed, plan


def strikes(seed: int, number: int) -> list[Strike]:
    return list(islice(deal(Random(seed), list(KINDS), workers=3, producers=2), number))


def test_a_seed_gives_the_same_faults_again() -> None:
    assert strikes(7, 100) == strikes(7, 100)
    assert strikes(7, 100) != strikes(8, 100)


def test_each_kind_comes_once_before_any_comes_again() -> None:
    for seed in range(20):
        kinds = [strike.kind for strike in strikes(seed, 2 * len(KINDS))]
        assert set(kinds[: len(KINDS)]) == set(kinds[len(KINDS) :]) == set(KINDS)


def test_faults_are_as_long_and_as_far_apart_as_their_kinds_say() -> None:
    before = 0.0
    for strike in strikes(3, 500):
        assert GAP[0] <= strike.at - before <= GAP[1] + 1e-9
        shortest, longest = KINDS[strike.kind].seconds
        assert shortest <= strike.seconds <= longest
        before = strike.at


def test_every_victim_is_struck() -> None:
    assert {strike.victim for strike in strikes(3, 500)} == {"server", "w1", "w2", "w3", "p1", "p2"}


def test_every_kind_has_an_effect() -> None:
    assert EFFECTS.keys() == KINDS.keys()


def test_everybody_who_has_a_key_sends_the_same() -> None:
    random = Random(1)
    operations = [each for n in range(5_000) for each in plan(random, "p1-1a", n, 25.0)]
    assert {operation.kind for operation in operations} >= KEYED
    for operation in operations:
        if operation.key is not None:
            again = keyed(operation.kind, operation.key, operation.variant, waits=operation.waits)
            assert again == operation


def test_the_load_moves_on_to_other_entities() -> None:
    random = Random(1)
    for generation in range(3):
        operations = [
            each for n in range(500) for each in plan(random, "p1-1a", n, (generation + 0.5) * GENERATION)
        ]
        entities = {operation.entity for operation in operations if operation.key is None}
        assert entities <= {f"{generation}.{number}" for number in range(ENTITIES)}
