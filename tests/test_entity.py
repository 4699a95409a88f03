"""Entities as users write and call them: handles, activations, messages, durable fields."""

import asyncio
import copy
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

import pytest

from entityq import (
    Broadcast,
    Entity,
    EntityDefect,
    EntityStatus,
    Failure,
    MalformedMessage,
    PayloadTooLarge,
    TurnContext,
    message,
)
from entityq.address import Address
from entityq.codec import Limits, pack, unpack
from entityq.context import Turn, current_turn
from entityq.definition import FORGET, EntityDefinition
from entityq.entity import new_handle
from entityq.message import TypeMessage
from tests.support.in_place import InPlace, InPlaceApp

LIMITS = Limits()

app = InPlaceApp()


class InsufficientFunds(Failure):
    balance: int


class Noted(Entity):
    """A base class: its fields and messages belong to every type below it."""

    notes: list[str] = []

    @message
    async def note(self, text: str) -> int:
        self.notes.append(text)
        return len(self.notes)

    @message
    async def describe(self) -> str:
        return "noted"


@app.entity
class Account(Noted):
    balance: int = 0
    bank: ClassVar[str] = "first"
    _cached: int = 0

    @message(primary_key="reference", timeout=7)
    async def deposit(self, amount: int, reference: str) -> int:
        """Adds."""
        self.balance += amount
        return self.balance

    @message
    def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise InsufficientFunds(balance=self.balance)
        self.balance -= amount
        return self.balance

    @message(persisted=False, concurrent=True)
    async def read(self) -> int:
        return self.balance

    @message(persisted=False, name="spoil")
    async def change_while_volatile(self) -> None:
        self.balance = 1_000_000

    @message(concurrent=True)
    async def change_while_concurrent(self) -> None:
        self.balance = 1_000_000

    @message
    async def describe(self) -> str:
        return f"{self.id}: {self.context.request_id}, {self.context.headers.get('tenant')}"

    @message
    async def pass_on(self, amount: int, to: str) -> int:
        return await Account.at(to).deposit(amount, reference=f"from-{self.id}")

    @property
    def label(self) -> str:
        return self._label

    @label.setter
    def label(self, text: str) -> None:
        self._label = text

    _label: str = ""


@app.entity(type="Book", shard_group="slow", mailbox_capacity=10, max_idle=60, concurrency=4)
class Ledger(Account):
    """A type below a type."""

    lines: dict[str, list[int]] = {"opening": [0]}


@pytest.fixture(autouse=True)
def in_place() -> InPlace:
    app.in_place = InPlace()
    return app.in_place


def definition(cls: type[Entity] = Account) -> EntityDefinition:
    return cls.__definition__


def activation(cls: type[Entity] = Account, *, read_only: bool = False) -> Any:
    found = definition(cls)
    return found.new_activation("acct-1", found.state.new(), read_only=read_only)


# ----- what is found out


def test_a_definition_has_the_options_and_the_messages() -> None:
    found = app.definitions["Account"]
    assert found is definition()
    assert (found.type, found.shard_group, found.mailbox_capacity) == ("Account", "default", 100)
    assert (found.max_idle, found.concurrency, found.stateless) == (300, 1, False)
    assert set(found.messages) == {
        FORGET, "note", "describe", "deposit", "withdraw", "read",
        "spoil", "change_while_concurrent", "pass_on",
    }  # fmt: skip
    deposit, read = found.messages["deposit"], found.messages["read"]
    assert (deposit.primary_key, deposit.timeout, deposit.is_async) == ("reference", 7, True)
    assert (deposit.persisted, deposit.concurrent, deposit.changes_state) == (True, False, True)
    assert (read.persisted, read.concurrent, read.changes_state) == (False, True, False)
    assert found.messages["withdraw"].is_async is False
    assert found.messages[FORGET].changes_state


def test_options_of_the_decorator() -> None:
    found = app.definitions["Book"]
    assert (found.shard_group, found.mailbox_capacity, found.max_idle, found.concurrency) == (
        "slow",
        10,
        60,
        4,
    )
    assert found.state.fields == ("notes", "balance", "lines")
    assert found.messages["deposit"].payload is not definition().messages["deposit"].payload


def test_the_class_still_shows_what_was_declared() -> None:
    assert Account.balance == 0
    assert Account.bank == "first"
    assert isinstance(Account.deposit, TypeMessage)
    assert Account.deposit.__doc__ == "Adds."
    assert Account.deposit.name == "deposit"


async def test_the_handler_itself_can_be_called() -> None:
    entity = activation()
    assert await Account.deposit.handler(entity, 10, "r-1") == 10
    assert await Noted.describe.handler(entity) == "noted"


# ----- handles


def test_a_handle_is_an_address() -> None:
    account = Account.at("acct-1")
    assert isinstance(account, Account)
    assert account.id == "acct-1"
    assert repr(account) == "<Account/acct-1 handle>"
    assert repr(Ledger.at("x")) == "<Book/x handle>"


@pytest.mark.parametrize("entity_id", ["", "a\nb", "x" * 513, "\ud800"])
def test_a_bad_id_is_refused(entity_id: str) -> None:
    with pytest.raises(MalformedMessage):
        Account.at(entity_id)


def test_an_entity_is_not_constructed() -> None:
    with pytest.raises(TypeError, match=r'address it with Account\.at\("some id"\)'):
        Account()


def test_a_class_without_an_app_has_no_handles() -> None:
    class Below(Account):
        pass

    for cls in (Noted, Below):
        with pytest.raises(TypeError, match=r"belongs to no app: decorate it with @app\.entity"):
            cls.at("x")


def test_a_handle_does_not_hold_the_state() -> None:
    account = Account.at("acct-1")
    with pytest.raises(
        AttributeError, match=r"<Account/acct-1 handle>.*read balance through a message of Account"
    ):
        str(account.balance)
    with pytest.raises(AttributeError, match="only its own messages can change balance"):
        account.balance = 5


def test_a_handle_has_no_context_not_even_inside_somebodys_turn() -> None:
    token = current_turn.set(Turn(TurnContext(request_id=5), app.in_place))
    try:
        assert activation().context.request_id == 5
        with pytest.raises(RuntimeError, match="<Account/acct-1 handle> has no context"):
            str(Account.at("acct-1").context)
    finally:
        current_turn.reset(token)
    with pytest.raises(RuntimeError, match="inside a turn"):
        str(activation().context)


async def test_a_handle_of_another_home_sends_there() -> None:
    elsewhere = InPlaceApp()
    account = new_handle(Account, "acct-1", elsewhere)
    assert await account.deposit(1, reference="r-1") == 1
    assert [call.message.name for call in elsewhere.in_place.calls] == ["deposit"]
    assert app.in_place.calls == []


# ----- calls


async def test_ask_send_and_their_sync_twins_get_the_typed_reply(in_place: InPlace) -> None:
    account = Account.at("acct-1")
    assert await account.deposit(10, reference="r-1") == 10
    assert await account.deposit.ask(10, reference="r-2") == 20
    receipt = await account.deposit.send(10, reference="r-3")
    assert await receipt == 30
    assert await asyncio.to_thread(account.deposit.call, 10, reference="r-4") == 40
    delayed = await asyncio.to_thread(account.deposit.delay, 10, reference="r-5")
    assert await asyncio.to_thread(delayed.get, timeout=5) == 50
    assert [call.primary_key for call in in_place.calls] == ["r-1", "r-2", "r-3", "r-4", "r-5"]


async def test_a_call_has_everything_that_a_sender_needs(in_place: InPlace) -> None:
    await Account.at("acct-1").deposit.send(10, reference="r-1")
    (call,) = in_place.calls
    assert call.entity is definition()
    assert call.message is definition().messages["deposit"]
    assert call.address == Address("Account", "acct-1")
    assert call.message.payload.decode(call.payload, LIMITS) == {"amount": 10, "reference": "r-1"}
    assert len(call.payload_hash) == 32
    assert (call.primary_key, call.timeout, call.headers, call.content_type) == ("r-1", 7, {}, "msgpack")


async def test_a_broadcast_is_a_call_to_no_entity(in_place: InPlace) -> None:
    read = Account.read.options(timeout=2).options(headers={"tenant": "a"})
    assert await read.broadcast() == Broadcast(1, 0, 0, 0)
    assert await asyncio.to_thread(Account.read.broadcast_blocking) == Broadcast(1, 0, 0, 0)
    first, second = in_place.calls
    assert (first.address, first.message.name) == (Address("Account", "*"), "read")
    assert (first.timeout, first.headers) == (2, {"tenant": "a"})
    assert (second.timeout, second.headers) == (None, {})


async def test_options_are_of_one_call_and_add_up(in_place: InPlace) -> None:
    account = Account.at("acct-1")
    patient = account.withdraw.options(timeout=2, headers={"tenant": "a"})
    await patient.options(primary_key="w-1").send(0)
    await patient.options(timeout=3).send(0)
    await account.withdraw.send(0)
    assert [(call.timeout, call.primary_key, call.headers) for call in in_place.calls] == [
        (2, "w-1", {"tenant": "a"}),
        (3, None, {"tenant": "a"}),
        (None, None, {}),
    ]


async def test_a_payload_is_written_as_the_settings_say() -> None:
    other = InPlaceApp(serializer="json+gzip")
    await new_handle(Account, "acct-1", other).note.send("aa" * 500)
    (call,) = other.in_place.calls
    assert call.content_type == "json+gzip"
    assert len(call.payload) < 100
    plain = other.serializer.decode(call.payload, call.content_type, "payload")
    assert call.message.payload.read(plain) == {"text": "aa" * 500}
    await Account.at("acct-1").note.send("aa" * 500)
    assert app.in_place.calls[0].payload_hash == call.payload_hash


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_must_be_above_zero(seconds: float) -> None:
    with pytest.raises(MalformedMessage, match="timeout must be above 0 seconds"):
        Account.at("acct-1").deposit.options(timeout=seconds)


async def test_wrong_arguments_are_refused_at_the_sender(in_place: InPlace) -> None:
    account: Any = Account.at("acct-1")
    with pytest.raises(MalformedMessage, match=r"Account\.withdraw: amount: Input should be a valid integer"):
        await account.withdraw("all")
    with pytest.raises(PayloadTooLarge, match=r"payload of Account\.note"):
        await account.note.send("x" * (1024**2 + 1))
    assert in_place.calls == []


async def test_a_failure_arrives_typed_and_changes_nothing() -> None:
    account = Account.at("acct-1")
    await account.deposit(10, reference="r-1")
    with pytest.raises(InsufficientFunds) as failure:
        await account.withdraw(11)
    assert failure.value.balance == 10
    assert await account.read() == 10


async def test_an_overridden_message_is_the_one_that_runs() -> None:
    account = Account.at("acct-1").describe.options(headers={"tenant": "a"})
    assert await account() == "acct-1: 1, a"


async def test_in_a_turn_the_turns_sender_carries_the_calls(in_place: InPlace) -> None:
    """The app of a handle may be another one: what is sent in a turn is part of that turn."""
    elsewhere = InPlace()
    token = current_turn.set(Turn(TurnContext(request_id=5), elsewhere))
    try:
        await Account.at("acct-1").deposit(1, reference="r-1")
        await Account.at("acct-1").status()
        await Account.at("acct-1").forget()
    finally:
        current_turn.reset(token)
    assert len(elsewhere.calls) == 2
    assert in_place.calls == []
    assert await Account.at("acct-1").pass_on(5, "acct-2") == 5
    assert [str(call.address) for call in in_place.calls] == ["Account/acct-1", "Account/acct-2"]


async def test_status_and_forget_go_through_the_sender(in_place: InPlace) -> None:
    account = Account.at("acct-1")
    await account.deposit(1, reference="r-1")
    assert await account.status() == EntityStatus("idle")
    await account.forget()
    assert in_place.calls[-1].message is definition().messages[FORGET]
    assert in_place.calls[-1].message.payload.decode(in_place.calls[-1].payload, LIMITS) == {}


# ----- primary keys


@pytest.mark.parametrize(
    ("kind", "value", "key"),
    [(str, "r-1", "r-1"), (int, 5, "5"), (UUID, UUID(int=5), str(UUID(int=5))), (str, "Zürich", "Zürich")],
)
async def test_a_primary_key_is_text_a_number_or_a_uuid(kind: Any, value: object, key: str) -> None:
    keyed = InPlaceApp()

    class Keyed(Entity):
        @message(primary_key="reference")
        async def take(self, reference: object) -> None: ...

    Keyed.take.handler.__annotations__["reference"] = kind
    keyed.entity(Keyed)
    await Keyed.at("x").take(value)
    assert keyed.in_place.calls[0].primary_key == key


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is empty"),
        (None, "must be text, an int or a UUID, not NoneType"),
        (True, "not bool"),
        (1.5, "not float"),
        ("\ud800", "not valid"),
    ],
)
async def test_a_primary_key_that_means_nothing_is_refused(value: object, problem: str) -> None:
    keyed = InPlaceApp()

    @keyed.entity
    class Keyed(Entity):
        @message(primary_key="reference")
        async def take(self, reference: Any) -> None: ...

    with pytest.raises(MalformedMessage, match=problem):
        await Keyed.at("x").take(value)


async def test_a_key_option_is_for_messages_that_declare_none() -> None:
    account = Account.at("acct-1")
    with pytest.raises(MalformedMessage, match=r"Account\.deposit takes its primary key from .*reference"):
        await account.deposit.options(primary_key="other").send(1, reference="r-1")
    with pytest.raises(MalformedMessage, match=r"Account\.read is volatile"):
        await account.read.options(primary_key="other").send()


# ----- activations and durable fields


async def test_state_is_kept_and_mutable_defaults_are_copied() -> None:
    first, second = Account.at("acct-1"), Account.at("acct-2")
    assert await first.note("a") == 1
    assert await first.note("b") == 2
    assert await second.note("c") == 1
    assert Account.notes == []
    book = Ledger.at("2026")
    assert await book.note("d") == 1
    assert activation(Ledger).lines is not activation(Ledger).lines


async def test_only_persisted_messages_that_are_not_concurrent_change_state() -> None:
    account = Account.at("acct-1")
    await account.deposit(10, reference="r-1")
    for change in (account.change_while_volatile, account.change_while_concurrent):
        with pytest.raises(EntityDefect, match="cannot change balance: only a persisted message"):
            await change()
    assert await account.read() == 10


def test_an_activation_takes_its_values_and_can_be_restored() -> None:
    found = definition()
    entity: Any = found.new_activation("acct-1", {"balance": 5, "notes": ["a"]})
    entity.balance = 6
    entity.notes.append("b")
    entity._cached = 3
    before = found.state.dump(entity, LIMITS)
    assert found.values_of(entity) == {"balance": 6, "notes": ["a", "b"]}
    entity.balance = 7
    found.restore(entity, found.state.load(before))
    assert found.values_of(entity) == {"balance": 6, "notes": ["a", "b"]}
    assert found.state.dump(entity, LIMITS) == before
    assert entity._cached == 3, "not durable: it lives as long as the activation"


def test_restoring_forgets_what_newer_code_had_saved() -> None:
    found = definition()
    stored = pack({"balance": 5, "opened": 2026}, LIMITS, "state")
    entity = found.new_activation("acct-1", found.state.load(stored))
    assert "opened" in unpack(found.state.dump(entity, LIMITS), LIMITS, "state")
    found.restore(entity, found.state.new())
    assert unpack(found.state.dump(entity, LIMITS), LIMITS, "state") == {"notes": [], "balance": 0}


def test_what_is_not_durable_must_look_like_it() -> None:
    entity = activation()
    entity._anything = 1
    entity.label = "mine"
    assert entity.label == "mine"
    for name in ("balanse", "deposit", "bank"):
        with pytest.raises(AttributeError, match=f"Account has no durable field {name}: annotate it"):
            setattr(entity, name, 1)
    with pytest.raises(AttributeError, match=r"balance is a durable field .*cannot be deleted"):
        del entity.balance
    del entity._anything


def test_a_read_only_copy_refuses_assignment_and_keeps_its_own_notes() -> None:
    entity = activation(read_only=True)
    entity._cached = 1
    with pytest.raises(AttributeError, match=r"<Account/acct-1 read-only activation> cannot change balance"):
        entity.balance = 1
    assert entity.balance == 0


def test_context_has_what_the_turn_was_given() -> None:
    deadline = datetime(2026, 1, 2, tzinfo=UTC)
    context = TurnContext(
        5, attempt=2, primary_key="r-1", headers={"a": "b"}, deadline=deadline, fencing_token=(3, 9)
    )
    token = current_turn.set(Turn(context, app.in_place))
    try:
        assert activation().context is context
    finally:
        current_turn.reset(token)


async def test_hooks_are_there_to_be_overridden() -> None:
    hooked = InPlaceApp()

    @hooked.entity
    class Cached(Entity):
        async def on_activate(self) -> None:
            self._warm = True

    entity = definition(Cached).new_activation("x", {})
    await entity.on_activate()
    await entity.on_deactivate()
    assert vars(entity)["_warm"] is True


def test_a_handle_can_be_copied() -> None:
    account = copy.copy(Account.at("acct-1"))
    assert account.id == "acct-1"
