"""What @app.entity, @message and @app.task refuse, with a sentence that says what to change."""

import math
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from entityq import Entity, EntityQ, message
from entityq.entity import Message


class Base(Entity):
    balance: int = 0

    @message
    async def read(self) -> int:
        return self.balance


def handler(name: str = "take", **changes: object) -> Callable[..., Any]:
    """A method that no type checker would let pass if it were written down."""

    async def take(self: Any, amount: int, key: str = "k") -> None: ...

    take.__name__ = name
    for attribute, value in changes.items():
        setattr(take, attribute, value)
    return take


def not_async() -> None: ...


def without_self(amount: int) -> None: ...


def entity(cls: Any = None, **options: Any) -> Any:
    app: Any = EntityQ("bank")
    return app.entity(cls) if not options else app.entity(**options)(cls or type("Account", (Base,), {}))


def with_attributes(**attributes: object) -> type[Entity]:
    return type("Account", (Base,), attributes)


def decorated(**options: Any) -> Message[..., Any]:
    decorate: Any = message(**options)
    found: Message[..., Any] = decorate(handler())
    return found


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (SimpleNamespace, "is for subclasses of entityq.Entity"),
        (handler(), "is for subclasses of entityq.Entity"),
        (with_attributes(__annotations__={"limit": int}), r"Account\.limit has no default"),
        (with_attributes(__annotations__={"limit": "Nowhere"}, limit=1), "'Nowhere' is not defined"),
        (with_attributes(__annotations__={"limit": int}, limit="ten"), "state of Account: limit"),
        (
            with_attributes(__annotations__={"limit": SimpleNamespace}, limit=1),
            "state of Account: .*SimpleNamespace",
        ),
        (
            with_attributes(__annotations__={"limit": int}, limit=property(str)),
            "a method or descriptor has its name",
        ),
        (with_attributes(__annotations__={"read": int}), r"Account\.read is annotated as a durable field"),
        (with_attributes(__annotations__={"id": str}, id="x"), r"Account\.id: the name belongs to Entity"),
        (with_attributes(context=1), r"Account\.context: the name belongs to Entity"),
        (with_attributes(status=message(handler("status"))), r"Account\.status: the name belongs to Entity"),
        (with_attributes(at=classmethod(handler())), r"Account\.at: the name belongs to Entity"),
        (with_attributes(__annotations__={"forget": bool}), r"Account\.forget: the name belongs to Entity"),
        (with_attributes(__init__=handler()), r"Account\.__init__ would never be called"),
        (with_attributes(on_activate=not_async), r"Account\.on_activate must be an async def"),
        (with_attributes(on_deactivate=message(handler())), r"Account\.on_deactivate must be an async def"),
        (
            with_attributes(a=message(handler()), b=message(handler())),
            "Account has two messages of the name take",
        ),
        (with_attributes(a=decorated(name="$forget")), r"Account\.a: names that begin with \$"),
        (
            with_attributes(a=decorated(name="two words")),
            "'two words' cannot be the name of a message of Account",
        ),
        (with_attributes(a=decorated(timeout=0)), r"Account\.take: timeout must be above 0"),
        (with_attributes(a=decorated(keep=59)), r"Account\.take: keep must be at least 60 seconds, not 59"),
        (with_attributes(a=decorated(keep=math.inf)), r"Account\.take: keep must be at least 60 seconds"),
        (
            with_attributes(a=decorated(keep_keys=timedelta(0))),
            r"take: keep_keys must be at least 60 seconds",
        ),
        (with_attributes(a=decorated(keep=60, persisted=False)), "nothing of a volatile message is kept"),
        (
            with_attributes(a=decorated(primary_key="reference")),
            "primary_key names reference, which is no param",
        ),
        (
            with_attributes(a=decorated(transactional=True, persisted=False)),
            "that is not concurrent can be tran",
        ),
        (
            with_attributes(a=decorated(transactional=True, concurrent=True)),
            "that is not concurrent can be tran",
        ),
        (with_attributes(a=decorated(primary_key="key")), "key has a default"),
        (with_attributes(a=decorated(primary_key="amount", persisted=False)), "a volatile message cannot"),
        (with_attributes(a=message(handler(__annotations__={"return": None}))), "amount has no annotation"),
    ],
)
def test_entities_that_cannot_work(cls: object, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        entity(cls)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"type": "two words"}, "'two words' cannot be the name of an entity type"),
        ({"type": "x" * 129}, "cannot be the name of an entity type"),
        ({"type": ""}, "'' cannot be the name of an entity type"),
        ({"shard_group": "a:b"}, "'a:b' cannot be the name of a shard group"),
        ({"mailbox_capacity": 0}, "Account: mailbox_capacity must be at least 1"),
        ({"concurrency": 0}, "Account: concurrency must be at least 1"),
        ({"max_idle": 0}, "Account: max_idle must be above 0 seconds"),
        ({"retries": 3}, "retries"),
    ],
)
def test_options_that_cannot_work(options: dict[str, object], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        entity(**options)


@pytest.mark.parametrize("wrong", [staticmethod(handler()), not_async, without_self, 5, Base])
def test_a_message_is_a_method_with_self(wrong: Any) -> None:
    with pytest.raises(TypeError, match="@message is for methods of an Entity, with self"):
        message(wrong)


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (5, {}, "@app.task is for functions: 5 is not one"),
        (Base, {}, "@app.task is for functions"),
        (handler(), {"name": "a b"}, "'a b' cannot be the name of a task"),
        (handler(__annotations__={"return": None}), {}, r"take\.run: parameter self has no annotation"),
        (handler(), {"shard_group": ""}, "cannot be the name of a shard group"),
    ],
)
def test_tasks_that_cannot_work(function: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        EntityQ("bank").task(**options)(function)


def test_a_name_is_taken_once_in_an_app() -> None:
    app = EntityQ("bank")
    app.entity(with_attributes())
    with pytest.raises(TypeError, match="the app bank already has an entity type or task Account"):
        app.entity(with_attributes())

    def account() -> None: ...

    with pytest.raises(TypeError, match="already has an entity type or task Account"):
        app.task(name="Account")(account)
    app.entity(type="Account2")(with_attributes())
    assert set(app.definitions) == {"Account", "Account2"}


def test_a_class_is_an_entity_type_once() -> None:
    cls = with_attributes()
    EntityQ("bank").entity(cls)
    with pytest.raises(TypeError, match="Account is already an entity type, Account"):
        EntityQ("shop").entity(cls)
    EntityQ("shop").entity(type("Savings", (cls,), {}))


def test_a_refused_class_can_be_mended_and_registered() -> None:
    app = EntityQ("bank")
    cls = with_attributes(__annotations__={"limit": int}, limit="ten")
    with pytest.raises(TypeError):
        app.entity(cls)
    type.__setattr__(cls, "limit", 10)
    app.entity(cls)
    assert app.definitions["Account"].state.new() == {"balance": 0, "limit": 10}
