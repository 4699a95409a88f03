"""What every entity can count on: the same suite for entityq.testing and for a real cluster."""

import asyncio

import pytest

from entityq import (
    Accepted,
    EntityDefect,
    MailboxFull,
    MalformedMessage,
    PrimaryKeyConflict,
    SendTimeout,
)
from tests.conformance.bank import InsufficientFunds, ambient
from tests.conformance.conftest import CAPACITY, Bank


async def test_calls_reach_handlers_ent_01(bank: Bank) -> None:
    account = bank.account("a")
    assert await account.deposit(10, reference="r-1") == 10
    receipt = await account.deposit.send(5, "r-2")
    assert (await receipt, await receipt, receipt.duplicate) == (15, 15, False)
    assert str(receipt.address) == "Account/a"
    assert await asyncio.to_thread(account.deposit.call, 5, reference="r-3") == 20
    delayed = await asyncio.to_thread(account.deposit.delay, 5, reference="r-4")
    assert await asyncio.to_thread(delayed.get, 5) == 25
    assert await account.read() == (25, [10, 5, 5, 5])


async def test_handlers_see_no_context_of_those_who_open_or_call_ent_02(bank: Bank) -> None:
    ambient.set("the caller's")
    assert await bank.account("a").ambient() == "nothing"


async def test_entities_share_nothing(bank: Bank) -> None:
    await bank.account("a").deposit(1, reference="r-1")
    await bank.account("b").deposit(2, reference="r-1")
    assert await bank.account("a").read() == (1, [1])
    assert await bank.account("b").read() == (2, [2])
    assert await bank.account("c").read() == (0, [])


# ----- primary keys


async def test_a_repeat_gets_the_first_reply(bank: Bank) -> None:
    account = bank.account("a")
    first = await account.deposit.send(10, reference="r-1")
    assert await first == 10
    await account.deposit(1, reference="r-2")
    repeat = await account.deposit.send(10, reference="r-1")
    assert (await repeat, repeat.duplicate, repeat.request_id) == (10, True, first.request_id)
    assert bank.stage.lines("deposit a ") == ["r-1", "r-2"]


async def test_repeats_at_once_join_the_running_request(bank: Bank) -> None:
    account = bank.account("a")
    assert await asyncio.gather(*(account.deposit(10, reference="r-1") for _ in range(5))) == [10] * 5
    assert bank.stage.lines("deposit a ") == ["r-1"]


async def test_a_changed_repeat_is_refused(bank: Bank) -> None:
    account = bank.account("a")
    first = await account.deposit.send(10, reference="r-1")
    with pytest.raises(
        PrimaryKeyConflict, match="Account/a was sent deposit with primary key 'r-1'"
    ) as caught:
        await account.deposit.send(11, reference="r-1")
    assert (caught.value.request_id, caught.value.accepted) == (first.request_id, Accepted.NO)
    with pytest.raises(PrimaryKeyConflict):
        await account.deposit(11, reference="r-1")
    assert await account.read() == (10, [10])


async def test_a_key_belongs_to_one_message_of_one_entity(bank: Bank) -> None:
    assert await bank.account("a").deposit(10, reference="r-1") == 10
    assert await bank.account("a").withdraw(3, reference="r-1") == 7
    assert await bank.account("b").deposit(4, reference="r-1") == 4
    assert await bank.add.options(primary_key="k").ask(1, 2) == 3
    with pytest.raises(PrimaryKeyConflict):
        await bank.add.options(primary_key="k").ask(1, 3)


async def test_a_key_keeps_a_failure_too(bank: Bank) -> None:
    account = bank.account("a")
    for _ in range(2):
        with pytest.raises(InsufficientFunds):
            await account.withdraw(5, reference="r-1")
    assert bank.stage.lines("withdraw a ") == ["r-1"]


# ----- turns


async def test_a_failure_is_typed_and_changes_nothing(bank: Bank) -> None:
    account = bank.account("a")
    await account.deposit(10, reference="r-1")
    with pytest.raises(InsufficientFunds) as caught:
        await account.withdraw(50, reference="r-2")
    assert caught.value.balance == 10
    assert await account.read() == (10, [10])
    assert await account.withdraw(4, reference="r-3") == 6
    assert await account.read() == (6, [10, -4])


async def test_a_defect_changes_nothing(bank: Bank) -> None:
    account = bank.account("a")
    await account.deposit(10, reference="r-1")
    with pytest.raises(EntityDefect, match="Account/a raised ZeroDivisionError") as caught:
        await account.explode()
    assert caught.value.accepted is Accepted.YES
    with pytest.raises(EntityDefect):
        await account.answer_nonsense()
    assert await account.read() == (10, [10])


async def test_arguments_that_do_not_fit_are_refused_at_the_sender(bank: Bank) -> None:
    account = bank.account("a")
    with pytest.raises(MalformedMessage, match="amount"):
        await account.deposit("ten", reference="r-1")  # type: ignore[arg-type]  # what is tested
    assert await account.deposit(10, reference="r-1") == 10


async def test_one_turn_at_a_time_and_neighbours_go_on(bank: Bank) -> None:
    bank.stage.close("door")
    first = await bank.account("a").deposit.send(1, reference="r-1", gate="door")
    second = await bank.account("a").deposit.send(2, reference="r-2")
    await bank.stage.saw("deposit a r-1")
    assert await bank.account("b").deposit(5, reference="r-1") == 5
    assert bank.stage.lines("deposit a ") == ["r-1"]
    bank.stage.open("door")
    assert (await first, await second) == (1, 3)


async def test_messages_of_one_sender_arrive_in_order(bank: Bank) -> None:
    ledger = bank.ledger("l")
    receipts = [await ledger.record.send(str(number)) for number in range(30)]
    assert [await receipt for receipt in receipts] == list(range(1, 31))
    assert await ledger.read() == [str(number) for number in range(30)]


async def test_a_caller_who_gives_up_finds_the_reply_by_the_key(bank: Bank) -> None:
    account = bank.account("a")
    bank.stage.close("door")
    with pytest.raises(SendTimeout) as caught:
        await account.deposit.options(timeout=0.2)(10, reference="r-1", gate="door")
    assert caught.value.accepted is Accepted.YES
    bank.stage.open("door")
    assert await account.deposit(10, reference="r-1", gate="door") == 10
    assert bank.stage.lines("deposit a ") == ["r-1"]


async def test_plain_functions_run_in_threads(bank: Bank) -> None:
    assert (await bank.account("a").thread()).startswith("entityq turn")


async def test_a_turn_knows_its_request(bank: Bank) -> None:
    described = bank.account("a").describe_turn.options(primary_key="k", headers={"trace": "t"})
    receipt = await described.send()
    request_id, key, headers = await receipt
    assert (request_id, key, headers["trace"]) == (receipt.request_id, "k", "t")


# ----- volatile and concurrent


async def test_readers_see_the_last_committed_state(bank: Bank) -> None:
    account = bank.account("a")
    await account.deposit(10, reference="r-1")
    bank.stage.close("told")
    running = await account.tell_ledger.send("line")
    await bank.stage.saw("told a")
    assert await account.peek() == 10
    bank.stage.open("told")
    await running


async def test_readers_cannot_change_the_state(bank: Bank) -> None:
    account = bank.account("a")
    await account.deposit(10, reference="r-1")
    with pytest.raises(EntityDefect, match="AttributeError") as caught:
        await account.change_what_is_not_mine()
    assert caught.value.accepted is Accepted.NO
    assert (await account.change_a_copy(), await account.change_a_copy()) == (2, 2)
    assert await account.read() == (10, [10])


async def test_a_full_mailbox_refuses_volatile_messages_del_12(bank: Bank) -> None:
    account = bank.account("a")
    bank.stage.close("door")
    held = [await account.hold.send("first", gate="door")]
    await bank.stage.saw("hold a first")
    held += [await account.hold.send(str(number)) for number in range(CAPACITY - 1)]
    with pytest.raises(MailboxFull, match="Account/a"):
        await account.hold("one too many")
    bank.stage.open("door")
    assert [await receipt for receipt in held] == ["first", "0", "1"]
    assert await account.hold("again") == "again"


# ----- what turns send


async def test_what_a_turn_sends_leaves_when_it_commits(bank: Bank) -> None:
    bank.stage.close("told")
    running = await bank.account("a").tell_ledger.send("line")
    await bank.stage.saw("told a")
    assert await bank.ledger("a").read() == []
    bank.stage.open("told")
    assert await running > 0
    assert await bank.ledger("a").read() == ["line"]


async def test_what_a_failed_turn_sends_never_leaves(bank: Bank) -> None:
    with pytest.raises(InsufficientFunds):
        await bank.account("a").tell_ledger("lost", fail=True)
    await bank.account("a").tell_ledger("kept")
    assert await bank.ledger("a").read() == ["kept"]


async def test_a_send_that_conflicts_is_a_defect_of_the_turn(bank: Bank) -> None:
    account, ledger = bank.account("a"), bank.ledger("a")
    first = await ledger.record_once.send("first", key="k")
    await first
    with pytest.raises(EntityDefect, match=str(first.request_id)):
        await account.tell_ledger_once("second", key="k")
    await account.tell_ledger_once("first", key="k")
    assert await ledger.read() == ["first"]
    assert (await account.read())[0] == 1


async def test_a_turn_cannot_wait_for_what_it_sends(bank: Bank) -> None:
    assert "would never end" in await bank.account("a").wait_for_what_it_sends()


async def test_a_turn_asks_others_but_not_in_a_circle(bank: Bank) -> None:
    account = bank.account("a")
    assert (await account.ask_ledger("one"), await account.ask_ledger("two")) == (1, 2)
    assert await account.gather(["x", "y"]) == [1, 1]
    assert "EntityDefect" in await account.ask_in_a_circle()
    assert (await account.read())[0] == 0


async def test_a_plain_function_asks_and_sends(bank: Bank) -> None:
    assert await bank.account("a").ask_from_a_thread("line") == (1, 3)
    assert await bank.ledger("a").read() == ["line"]


# ----- lives


async def test_an_entity_is_activated_once_and_keeps_what_is_not_durable(bank: Bank) -> None:
    account = bank.account("a")
    assert [await account.count_turns() for _ in range(3)] == [1, 2, 3]
    assert bank.stage.lines("activate ") == ["a"]
    assert await bank.ledger("a activations").read() == ["activated"]


async def test_status(bank: Bank) -> None:
    account = bank.account("a")
    assert ((await account.status()).state, (await account.status()).updated_at) == ("idle", None)
    bank.stage.close("door")
    running = await account.deposit.send(1, reference="r-1", gate="door")
    assert (await account.status()).state == "processing"
    bank.stage.open("door")
    await running
    status = await account.status()
    assert status.state == "complete"
    assert status.updated_at is not None
    with pytest.raises(InsufficientFunds):
        await account.withdraw(5, reference="r-2")
    assert (await account.status()).state == "failed"


async def test_forget_removes_state_and_keys(bank: Bank) -> None:
    account = bank.account("a")
    await account.deposit(10, reference="r-1")
    await account.forget()
    assert (await account.status()).state == "idle"
    assert await account.deposit(11, reference="r-1") == 11


async def test_tasks(bank: Bank) -> None:
    assert await bank.add.ask(2, 3) == 5
    assert await (await bank.add.send(2, 3)) == 5
    delayed = await asyncio.to_thread(bank.add.delay, 2, 3)
    assert await asyncio.to_thread(delayed.get) == 5
