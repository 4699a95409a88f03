"""Failures: typed where they are raised, typed where they arrive."""

import copy
import pickle
import sys
import traceback
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from entityq import Failure, UnknownFailure
from entityq.codec import Limits, pack, unpack
from entityq.errors import MalformedMessage
from entityq.failure import find_failure

LIMITS = Limits()
NO_LINES: list[str] = []


class InsufficientFunds(Failure):
    balance: int
    currency: str = "EUR"
    lines: list[str] = NO_LINES
    severity: ClassVar[int] = 3
    _private: int = 0


class Overdrawn(InsufficientFunds):
    """Adds a field to those of its base."""

    limit: int


class Closed(Failure):
    pass


class Custom(Failure):
    """With a constructor of its own."""

    reason: str

    def __init__(self, code: int) -> None:
        super().__init__(reason=f"code {code}")


def sent(failure: Failure) -> Failure:
    schema = failure.__schema__
    return schema.decode(schema.encode(failure, LIMITS), LIMITS)


def make(cls: type[Failure], **fields: Any) -> Failure:
    """Without the type checker, which would refuse what these tests are about."""
    return cls(**fields)


@pytest.mark.parametrize(
    "failure",
    [
        InsufficientFunds(balance=3),
        InsufficientFunds(balance=3, currency="CHF", lines=["a"]),
        Overdrawn(balance=-1, limit=5),
        Closed(),
        Custom(5),
        UnknownFailure(type="Gone", data={"since": 3}),
    ],
)
def test_it_arrives_as_it_was_raised(failure: Failure) -> None:
    arrived = sent(failure)
    assert type(arrived) is type(failure)
    assert arrived == failure
    assert str(arrived) == str(failure)
    assert hash(arrived) == hash(failure)


def test_fields_are_converted_and_defaults_copied() -> None:
    first, second = make(InsufficientFunds, balance="3"), InsufficientFunds(balance=3)
    assert first == second
    assert isinstance(first, InsufficientFunds)
    assert first.balance == 3
    assert first.lines is not second.lines
    assert first.lines is not NO_LINES


def test_only_annotated_public_fields_are_sent() -> None:
    data = InsufficientFunds.__schema__.encode(InsufficientFunds(balance=3), LIMITS)
    assert unpack(data, LIMITS, "failure") == {"balance": 3, "currency": "EUR", "lines": []}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "InsufficientFunds: balance: Field required"),
        ({"balance": "none"}, "InsufficientFunds: balance: Input should be a valid integer"),
        ({"balance": 3, "limit": 1}, "InsufficientFunds: limit: Extra inputs are not permitted"),
        ({"balance": 3, "severity": 1}, "InsufficientFunds: severity: Extra inputs are not permitted"),
    ],
)
def test_one_that_is_made_wrongly_is_a_type_error_where_it_is_made(
    fields: dict[str, object], problem: str
) -> None:
    with pytest.raises(TypeError, match=problem):
        make(InsufficientFunds, **fields)


def test_one_that_was_changed_into_something_wrong_is_not_sent() -> None:
    failure = InsufficientFunds(balance=3)
    vars(failure)["balance"] = "none"
    with pytest.raises(MalformedMessage, match="InsufficientFunds: balance"):
        sent(failure)


def test_the_base_class_cannot_be_raised() -> None:
    with pytest.raises(TypeError, match="subclass it"):
        Failure()


def test_a_field_cannot_have_a_name_of_exceptions() -> None:
    wrong = type("Wrong", (Failure,), {"__annotations__": {"args": int}})
    with pytest.raises(TypeError, match="Wrong: args is taken by Exception"):
        make(wrong, args=1)


def test_it_is_readable_and_compares_by_type_and_fields() -> None:
    assert str(InsufficientFunds(balance=3)) == "InsufficientFunds(balance=3, currency='EUR', lines=[])"
    assert str(Closed()) == repr(Closed()) == "Closed()"
    assert InsufficientFunds(balance=3) != InsufficientFunds(balance=4)
    assert Overdrawn(balance=3, limit=1) != InsufficientFunds(balance=3)
    assert Closed() != "Closed()"


def test_it_can_be_copied_pickled_noted_and_printed() -> None:
    failure = Overdrawn(balance=-1, limit=5)
    failure.add_note("while closing")
    for other in (copy.copy(failure), copy.deepcopy(failure), pickle.loads(pickle.dumps(failure))):
        assert other == failure
        assert other.__notes__ == ["while closing"]
    assert "Overdrawn(balance=-1" in "".join(traceback.format_exception(failure))


def test_it_is_found_by_name_in_the_handlers_module_first() -> None:
    in_bank = type("Frozen", (Failure,), {"__module__": "bank"})
    in_shop = type("Frozen", (Failure,), {"__module__": "shop"})
    assert find_failure("Frozen", "bank") is in_bank
    assert find_failure("Frozen", "shop") is in_shop
    assert find_failure("Frozen", "other") is None, "one of two would be a guess"
    assert find_failure("Overdrawn", "other") is Overdrawn, "the only one, below another failure"
    assert find_failure("Missing", __name__) is None


def test_a_failure_that_the_handlers_module_has_imported_is_found_among_its_namesakes() -> None:
    namesake = type("InsufficientFunds", (Failure,), {"__module__": "elsewhere"})
    shop = ModuleType("shop_with_imports")
    vars(shop)["InsufficientFunds"] = InsufficientFunds
    with patch.dict(sys.modules, {shop.__name__: shop}):
        assert find_failure("InsufficientFunds", shop.__name__) is InsufficientFunds
    assert find_failure("InsufficientFunds", "unrelated") is None, f"{namesake} would be a guess"


def test_a_stored_failure_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="InsufficientFunds: balance: Field required"):
        InsufficientFunds.__schema__.decode(pack({}, LIMITS, "failure"), LIMITS)
