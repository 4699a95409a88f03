"""State versions: what @app.entity refuses, and how the stored fields of older versions are read."""

from typing import Any

import pytest

from entityq import Entity, EntityQ, MalformedMessage, Upcaster, upcast
from entityq.codec import Limits, pack, unpack
from entityq.definition import EntityDefinition
from entityq.schema import NewerState, StateSchema
from entityq.upcast import Fields, chain

LIMITS = Limits()


class Money(Entity):
    cents: int = 0
    currency: str = "EUR"

    @upcast(2)
    @staticmethod
    def add_currency(fields: Fields) -> Fields:
        """Version 2 had no currency."""
        return {**fields, "currency": "DEM"}

    @upcast(1)
    @staticmethod
    def to_cents(fields: Fields) -> Fields:
        return {"cents": fields.pop("balance") * 100, **fields}


def define(cls: type[Entity], state_version: int) -> EntityDefinition:
    app = EntityQ("bank")
    app.entity(type="Money", state_version=state_version)(type("Money", (cls,), {}))
    return app.definitions["Money"]


def money() -> StateSchema:
    return define(Money, 3).state


def upcasters(*versions: int) -> list[Upcaster]:
    return [Upcaster(version, lambda fields: fields) for version in versions]


def stored(**fields: object) -> bytes:
    return pack(fields, LIMITS, "state")


def test_each_version_goes_through_those_after_it() -> None:
    schema = money()
    assert schema.version == 3
    assert schema.load(schema.upcast(stored(balance=2), 1)) == {"cents": 200, "currency": "DEM"}
    assert schema.load(schema.upcast(stored(cents=2), 2)) == {"cents": 2, "currency": "DEM"}
    assert schema.load(schema.upcast(stored(cents=2), 3)) == {"cents": 2, "currency": "EUR"}


def test_the_version_of_now_and_nothing_at_all_stay_as_they_are() -> None:
    schema, data = money(), stored(cents=2)
    assert schema.upcast(data, 3) is data
    for version in (1, 3, 4):
        assert schema.upcast(None, version) is None


def test_a_newer_version_is_not_read() -> None:
    with pytest.raises(NewerState, match="the state of Money was stored with version 4, this code has 3"):
        money().upcast(stored(cents=2), 4)


def test_fields_that_no_version_knows_are_kept() -> None:
    schema = money()
    upcasted = schema.upcast(stored(balance=2, opened=2026), 1)
    assert upcasted is not None
    entity: Any = define(Money, 3).new_activation("a", schema.load(upcasted))
    assert unpack(schema.dump(entity, LIMITS), LIMITS, "state")["opened"] == 2026


def unstorable(fields: Fields) -> Fields:
    return {**fields, "cents": object()}


def test_what_an_upcaster_returns_must_be_fields_that_can_be_stored() -> None:
    no_map: Any = list[object]
    schema = StateSchema({"cents": int}, {"cents": 0}, "Money", [Upcaster(1, no_map)])
    with pytest.raises(MalformedMessage, match="state of Money, upcast from version 1: a map was expected"):
        schema.upcast(stored(balance=2), 1)
    schema = StateSchema({"cents": int}, {"cents": 0}, "Money", [Upcaster(1, unstorable)])
    with pytest.raises(MalformedMessage, match="state of Money"):
        schema.upcast(stored(balance=2), 1)


def test_an_upcaster_is_a_function_that_can_be_called_and_has_its_words() -> None:
    assert Money.to_cents({"balance": 2}) == {"cents": 200}
    assert Money.add_currency.__doc__ == "Version 2 had no currency."


@pytest.mark.parametrize(
    ("versions", "state_version", "problem"),
    [
        ((), 2, r"Money has state_version 2 and no @upcast\(1\): entities stored with version 1"),
        ((1, 3), 4, r"no @upcast\(2\)"),
        ((1, 2), 2, r"@upcast\(2\) makes version 3 of the state, and state_version is 2"),
        ((0, 1), 2, r"@upcast\(0\) makes version 1"),
        ((1, 1), 2, "two upcasters from version 1"),
        ((), 0, "state_version must be from 1 to 2,147,483,647, not 0"),
        ((), 2**31, "state_version must be from 1"),
    ],
)
def test_a_chain_with_gaps_is_refused(versions: tuple[int, ...], state_version: int, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        chain(upcasters(*versions), state_version, "Money")


def test_entity_types_are_refused_for_it_at_their_definition() -> None:
    with pytest.raises(TypeError, match=r"Money has state_version 4 and no @upcast\(3\)"):
        define(Money, 4)
    with pytest.raises(TypeError, match=r"state_version is 2"):
        define(Money, 2)


def test_an_upcaster_is_no_coroutine_function() -> None:
    async def slowly(fields: Fields) -> Fields:
        return fields

    decorate: Any = upcast(1)
    for wrong in (slowly, "to_cents"):
        with pytest.raises(TypeError, match=r"@upcast\(1\) is for plain functions"):
            decorate(wrong)
