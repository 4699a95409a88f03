from collections.abc import Coroutine
from typing import Any

from entityq import Entity, EntityQ
from entityq.address import Address
from entityq.definition import MessageDefinition
from entityq.runner.activation import Activation
from entityq.runner.commit import Tenure
from entityq.runner.request import Request
from entityq.runner.residents import Residents
from entityq.runner.turn_slots import TurnSlots

app = EntityQ("residents")


@app.entity(max_idle=10)
class Plain(Entity):
    pass


class Nothing:
    """No turn is taken in these tests."""

    slots = TurnSlots(1)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> Any:
        raise AssertionError(name)

    async def take_turn(self, activation: Activation, request: Request, message: MessageDefinition) -> None:
        raise AssertionError

    def drained(self, activation: Activation) -> None:
        raise AssertionError


def activation(name: str, *, shard: int = 1, last_used: float = 0.0) -> Activation:
    address = Address("Plain", name)
    return Activation(Plain.__definition__, address, Tenure(1, shard, 1), Nothing(), clock=lambda: last_used)


def test_the_cap_and_a_place_that_is_lent() -> None:
    residents = Residents(1)
    first = activation("a")
    full = [residents.full]
    residents.add(first)
    full.append(residents.full)
    with residents.lent():
        full.append(residents.full)
        residents.add(activation("b"))
        full.append(residents.full)
    residents.remove(first)
    assert full == [False, True, False, True]
    # One is still there, and no place is lent any more.
    assert (residents.full, len(residents)) == (True, 1)


def test_an_old_activation_does_not_remove_its_successor() -> None:
    residents = Residents(2)
    old, new = activation("a"), activation("a")
    residents.add(old)
    residents.remove(old)
    residents.add(new)
    residents.remove(old)
    residents.became_idle(old)
    assert residents.get(1, Address("Plain", "a")) is new
    assert residents.longest_idle() is None


def test_the_longest_idle_one_goes_first_and_a_busy_one_never() -> None:
    residents = Residents(3)
    a, b, c = (activation(name, last_used=at) for name, at in (("a", 0.0), ("b", 1.0), ("c", 5.0)))
    for one in (a, b, c):
        residents.add(one)
        residents.became_idle(one)
    assert residents.longest_idle() is a
    residents.busy(a)
    assert residents.longest_idle() is b
    assert residents.idle_since(11.0) == [b]
    assert residents.idle_since(15.0) == [b, c]
    residents.became_idle(a)
    assert residents.longest_idle() is b


def test_activations_belong_to_their_shard() -> None:
    residents = Residents(5)
    one, other = activation("a", shard=1), activation("a", shard=2)
    residents.add(one)
    residents.add(other)
    assert residents.of_shard(2) == [other]
    assert list(residents) == [one, other]
