"""Payloads, replies and state: what goes in comes out, and what does not fit is refused with its name."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NotRequired
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, HttpUrl, computed_field
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12

from entityq.codec import Limits, pack, unpack
from entityq.errors import MalformedMessage, PayloadTooLarge
from entityq.schema import PayloadSchema, StateSchema, ValueSchema, public_annotations
from entityq.signature import read_signature

LIMITS = Limits()
NO_TAGS: list[str] = []


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Line:
    text: str
    amount: Decimal = Decimal(0)


@dataclass(frozen=True)
class Order:
    number: int
    lines: list[Line] = field(default_factory=list[Line])


class Options(TypedDict):
    limit: int
    note: NotRequired[str]


class Pair(NamedTuple):
    left: int
    right: str


class Address(BaseModel):
    """Aliases, computed fields and a strict choice of fields: what makes a model hard to read back."""

    model_config = ConfigDict(extra="forbid")

    street_name: str = Field(alias="streetName")
    city: str = Field(
        default="Bern", validation_alias=AliasChoices("town", "place"), serialization_alias="CITY"
    )

    @computed_field
    def label(self) -> str:
        return f"{self.street_name}, {self.city}"


def payload(handler: Callable[..., object]) -> PayloadSchema:
    return PayloadSchema(read_signature(handler, "Account.deposit", method=False), "Account.deposit")


def deposit(amount: int, reference: str, note: str = "", *, tags: list[str] = NO_TAGS) -> int:
    raise NotImplementedError


class Account:
    """Not an entity: a state schema only wants something with attributes."""

    balance: int = 0
    lines: list[Line] = []
    kind: ClassVar[str] = "current"
    _cache: int = 0


def state(**defaults: object) -> StateSchema:
    annotations = public_annotations(Account)
    return StateSchema(annotations, {"balance": 0, "lines": [], **defaults}, "Account")


VALUES: list[tuple[Any, object]] = [
    (int, 3),
    (int | None, None),
    (float, 0.5),
    (str, "Zürich ☃"),
    (bytes, b"\x00\xff"),
    (bool, True),
    (None, None),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
    (datetime, datetime.fromisoformat("2026-01-02T03:04:05")),
    (date, date(2026, 1, 2)),
    (time, time(3, 4, 5)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (Colour, Colour.BLUE),
    (Level, Level.HIGH),
    (Literal["a", 1], 1),
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[str], {"a", "b"}),
    (frozenset[int], frozenset({1, 2})),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a"}),
    (dict[Colour, set[int]], {Colour.RED: {1}}),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (Line, Line("rent", Decimal("12.30"))),
    (Order, Order(1, [Line("a"), Line("b", Decimal(2))])),
    (list[Order] | None, [Order(1)]),
    (Options, {"limit": 3}),
    (Options, {"limit": 3, "note": "n"}),
    (Pair, Pair(1, "a")),
    (Address, Address.model_validate({"streetName": "Long", "town": "Basel"})),
    (int | str, "1"),
    (Any, {"a": [1, "b", None]}),
    (Annotated[int, Field(gt=0)], 1),
]


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=[str(annotation) for annotation, _ in VALUES])
def test_values_come_back_as_they_were(annotation: object, value: object) -> None:
    schema = ValueSchema(annotation, "reply of Account.read")
    came_back = schema.decode(schema.encode(value, LIMITS), LIMITS)
    assert came_back == value
    assert type(came_back) is type(value)


def test_a_value_is_converted_by_its_annotation() -> None:
    schema = ValueSchema(Decimal, "reply of Account.read")
    assert schema.decode(schema.encode("1.5", LIMITS), LIMITS) == Decimal("1.5")


def test_a_reply_that_does_not_fit_is_refused_on_both_sides() -> None:
    schema = ValueSchema(int, "reply of Account.read")
    with pytest.raises(MalformedMessage, match=r"reply of Account\.read: Input should be a valid integer"):
        schema.encode("many", LIMITS)
    with pytest.raises(MalformedMessage, match=r"reply of Account\.read"):
        schema.decode(pack("many", LIMITS, "reply"), LIMITS)


def test_a_model_that_was_changed_into_something_wrong_is_refused() -> None:
    address = Address.model_validate({"streetName": "Long"})
    vars(address)["street_name"] = 5
    with pytest.raises(MalformedMessage, match=r"reply of Account\.read"):
        ValueSchema(Address, "reply of Account.read").encode(address, LIMITS)


def test_a_type_that_msgpack_does_not_have_is_refused() -> None:
    schema = ValueSchema(HttpUrl, "reply of Account.read")
    with pytest.raises(MalformedMessage, match=r"reply of Account\.read"):
        schema.encode("https://example.org", LIMITS)


# ----- payloads


def test_arguments_by_place_and_by_name_mean_the_same() -> None:
    schema = payload(deposit)
    assert schema.bind((10, "r-1"), {}) == schema.bind((10,), {"reference": "r-1"})
    assert schema.bind((), {"reference": "r-1", "amount": 10}) == {"amount": 10, "reference": "r-1"}
    assert schema.parameters == ("amount", "reference", "note", "tags")


def test_arguments_are_converted() -> None:
    arguments = payload(deposit).bind(("10", "r-1"), {"tags": ("a",)})
    assert arguments == {"amount": 10, "reference": "r-1", "tags": ["a"]}


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {"amount": 10}, "reference: Field required"),
        ((10,), {"reference": "r-1", "colour": "red"}, "colour: Extra inputs are not permitted"),
        ((10,), {"reference": 5}, "reference: Input should be a valid string"),
        ((10, "r-1"), {"amount": 11}, "amount: given by place and by name"),
        ((10, "r-1", "rent", ["a"]), {}, "4 arguments by place, at most 3 fit"),
        ((10, "r-1"), {"tags": ["a", 5]}, "tags.1: Input should be a valid string"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_with_the_name(
    args: tuple[object, ...], kwargs: dict[str, object], problem: str
) -> None:
    with pytest.raises(MalformedMessage) as refused:
        payload(deposit).bind(args, kwargs)
    assert refused.value.what == f"payload of Account.deposit: {problem}"


def test_refusals_do_not_repeat_the_values() -> None:
    def login(password: int) -> None: ...

    with pytest.raises(MalformedMessage) as refused:
        payload(login).bind(("hunter2",), {})
    assert "hunter2" not in str(refused.value)


def test_many_problems_are_counted_not_listed() -> None:
    def add(numbers: list[int]) -> None: ...

    with pytest.raises(MalformedMessage, match=r"numbers\.4: .*; and 95 more"):
        payload(add).bind((["x"] * 100,), {})


def test_parameters_may_have_any_name() -> None:
    def handler(model_config: int, _hidden: int, copy: int, type: int, self: int) -> None: ...

    schema = payload(handler)
    arguments = schema.bind((1, 2, 3, 4, 5), {})
    assert schema.read(schema.plain(arguments)) == arguments


def test_defaults_are_filled_in_where_it_runs() -> None:
    schema = payload(deposit)
    plain = schema.plain(schema.bind((10, "r-1"), {}))
    assert plain == {"amount": 10, "reference": "r-1"}
    first, second = schema.read(plain), schema.read(plain)
    assert first == {"amount": 10, "reference": "r-1", "note": "", "tags": []}
    assert first["tags"] is not second["tags"]


@pytest.mark.parametrize(
    "stored", [{"amount": 10, "reference": "r", "later": 1}, {"amount": 10}, [1, 2], None, {"amount": "x"}]
)
def test_a_stored_payload_that_does_not_fit_is_refused(stored: object) -> None:
    with pytest.raises(MalformedMessage, match=r"payload of Account\.deposit"):
        payload(deposit).decode(pack(stored, LIMITS, "payload"), LIMITS)


def test_calls_that_mean_the_same_have_one_hash() -> None:
    schema = payload(deposit)

    def hash_of(*args: object, **kwargs: object) -> bytes:
        return schema.hash(schema.plain(schema.bind(args, kwargs)))

    assert hash_of(10, "r-1") == hash_of(reference="r-1", amount=10)
    assert hash_of(10, "r-1") == hash_of("10", "r-1") == hash_of(10.0, "r-1")
    assert hash_of(10, "r-1") == hash_of(10, "r-1", note="", tags=[])
    assert hash_of(10, "r-1") != hash_of(11, "r-1")
    assert hash_of(10, "r-1") != hash_of(10, "r-1", note="rent")


def test_an_optional_argument_added_by_a_deploy_changes_no_hash() -> None:
    def before(amount: int, reference: str) -> None: ...

    def after(amount: int, reference: str, currency: str = "EUR", rate: Decimal = Decimal(1)) -> None: ...

    old, new = payload(before), payload(after)
    sent = old.plain(old.bind((10, "r-1"), {}))
    assert old.hash(sent) == new.hash(sent)
    assert new.hash(new.plain(new.bind((10, "r-1", "EUR", "1"), {}))) == new.hash(sent)
    assert new.read(sent)["currency"] == "EUR"


@settings(deadline=None)
@given(
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    lines=st.dictionaries(st.text(max_size=5), st.builds(Line, st.text(max_size=5), st.just(Decimal("1.5")))),
    pair=st.tuples(st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
    choice=st.one_of(st.none(), st.integers(0, 9), st.text(max_size=3)),
)
def test_what_was_bound_is_what_the_handler_gets(
    numbers: list[int], lines: dict[str, Line], pair: tuple[bool, float], choice: int | str | None
) -> None:
    def handler(
        numbers: list[int], lines: dict[str, Line], pair: tuple[bool, float], choice: int | str | None = 3
    ) -> None: ...

    schema = payload(handler)
    arguments = schema.bind((numbers, lines, pair), {"choice": choice})
    plain = schema.plain(arguments)
    data = pack(plain, LIMITS, "payload")
    decoded = schema.decode(data, LIMITS)
    assert decoded == arguments == {"numbers": numbers, "lines": lines, "pair": pair, "choice": choice}
    assert pack(schema.plain(decoded), LIMITS, "payload") == data
    assert schema.hash(schema.plain(decoded)) == schema.hash(plain)


# ----- state


def test_a_new_state_has_copies_of_the_defaults() -> None:
    schema = state()
    first, second = schema.new(), schema.load(None)
    assert first == second == {"balance": 0, "lines": []}
    assert first["lines"] is not second["lines"]
    assert schema.fields == ("balance", "lines")


def test_a_state_comes_back_and_dumps_to_the_same_bytes() -> None:
    schema = state()
    data = schema.dump(SimpleNamespace(balance=5, lines=[Line("a", Decimal(1))], _cache=9), LIMITS)
    loaded = schema.load(data)
    assert loaded == {"balance": 5, "lines": [Line("a", Decimal(1))]}
    assert schema.dump(SimpleNamespace(**loaded), LIMITS) == data


def test_sets_and_the_order_of_assignment_do_not_change_the_bytes() -> None:
    schema = StateSchema({"a": set[str], "b": int}, {"a": set[str](), "b": 0}, "Bag")
    words = [f"word-{number}" for number in range(50)]
    there = SimpleNamespace(a=set(words), b=1)
    back = SimpleNamespace(b=1, a={*words[25:], *words[:25]})
    assert schema.dump(there, LIMITS) == schema.dump(back, LIMITS)


def test_a_field_that_was_added_gets_its_default() -> None:
    assert state().load(pack({"balance": 5}, LIMITS, "state")) == {"balance": 5, "lines": []}


def test_a_field_that_newer_code_saved_survives_older_code() -> None:
    """Rolling deploys run both at once: the older one must not erase what it does not know."""
    schema = state()
    newer = pack({"balance": 5, "lines": [], "opened": date(2026, 1, 2)}, LIMITS, "state")
    entity = SimpleNamespace(**schema.load(newer))
    entity.balance += 1
    saved = unpack(schema.dump(entity, LIMITS), LIMITS, "state")
    assert saved == {"balance": 6, "lines": [], "opened": date(2026, 1, 2)}


def test_a_state_that_does_not_fit_is_refused_with_the_field() -> None:
    with pytest.raises(MalformedMessage, match="state of Account: balance: Input should be a valid integer"):
        state().dump(SimpleNamespace(balance="much", lines=[]), LIMITS)
    with pytest.raises(MalformedMessage, match="state of Account: balance: Input should be a valid integer"):
        state().load(pack({"balance": "much"}, LIMITS, "state"))


def test_a_state_above_the_limit_is_not_saved_but_one_saved_before_is_read() -> None:
    entity = SimpleNamespace(balance=0, lines=[Line("x" * 2000)])
    with pytest.raises(PayloadTooLarge, match="state of Account"):
        state().dump(entity, Limits(max_bytes=1024))
    saved = state().dump(entity, Limits(max_bytes=4096))
    assert state().load(saved)["lines"] == entity.lines


# ----- refused when they are decorated


def by_place(amount: int, /) -> None: ...


def star(*amounts: int) -> None: ...


def double_star(**amounts: int) -> None: ...


def not_a_value(amount: SimpleNamespace) -> None: ...


def stream() -> Iterator[int]:
    yield 1


async def yielding() -> AsyncIterator[int]:
    yield 1


yielding.__annotations__["return"] = int


def changed(**attributes: object) -> Callable[..., object]:
    """A function that no type checker would let pass if it were written down."""

    def handler(amount: int = 1) -> None: ...

    for name, value in attributes.items():
        setattr(handler, name, value)
    return handler


unannotated = changed(__annotations__={"return": None})
no_reply = changed(__annotations__={"amount": int})
unresolvable = changed(__annotations__={"amount": "Nowhere", "return": None})
wrong_default = changed(__defaults__=("ten",))


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        (by_place, "parameter amount: int: a payload is a map of names"),
        (star, r"parameter \*amounts: int"),
        (double_star, r"parameter \*\*amounts: int"),
        (unannotated, "parameter amount has no annotation"),
        (no_reply, "has no return annotation"),
        (unresolvable, "'Nowhere' is not defined"),
        (wrong_default, "default does not fit its annotation: payload of Account.deposit: amount"),
        (not_a_value, "SimpleNamespace"),
        (stream, "is a generator"),
        (yielding, r"annotate it with -> AsyncIterator\[\.\.\.\]"),
    ],
)
def test_signatures_that_cannot_be_sent(handler: Callable[..., object], problem: str) -> None:
    with pytest.raises(TypeError, match=problem) as refused:
        payload(handler)
    assert "Account.deposit" in str(refused.value)
