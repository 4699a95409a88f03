"""A checker that cannot fail proves nothing: each invariant meets a history that violates it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos import check_behaviour, check_order, check_replies
from tests.chaos.check_behaviour import MAX_GROWTH, MAX_RSS, SETTLING
from tests.chaos.evidence import Evidence, Finding
from tests.chaos.history import Sample, Struck
from tests.chaos.stored import Acquisition, Answer, Change, StoredRequest
from tests.chaos.story import BOOK, DESK, OTHER, SHARD, Story
from tests.chaos.verdict import INVARIANTS, judge

Spoil = Callable[[Story], None]
Check = Callable[[Evidence], Finding]


def test_a_good_history_violates_nothing() -> None:
    evidence = Story().evidence
    for check in INVARIANTS:
        finding = check(evidence)
        assert finding.violations == []
        assert finding.examined > 0, finding.invariant


# ----- accepted, applied, answered


def _leave_pending(story: Story) -> None:
    story.stored.pending = 1


def _lose_a_reply(story: Story) -> None:
    story.request(4, value=None)


def _lose_a_request(story: Story) -> None:
    del story.stored.requests[1]


def _lose_what_an_error_called_accepted(story: Story) -> None:
    story.fail(20, "SendTimeout", "yes")
    story.raised(20, "SendTimeout", "yes", request_id=99)


def _answer_twice(story: Story) -> None:
    story.stored.answers.append(Answer(50, 2, SHARD, 2))


def _apply_a_key_twice(story: Story) -> None:
    book = story.stored.entities[BOOK]
    story.entity(BOOK, journal=(*book.journal, replace(book.journal[1], version=9)))


def _apply_a_key_in_two_entities(story: Story) -> None:
    other = story.stored.entities[OTHER]
    story.entity(OTHER, journal=(*other.journal, story.stored.entities[BOOK].journal[1]))


def _forget_a_key(story: Story) -> None:
    journal = story.stored.entities[BOOK].journal
    story.entity(BOOK, journal=(journal[0], journal[2]))


def _apply_what_was_refused(story: Story) -> None:
    refused = {"refused": True, "request": 2, "run": "run2"}
    story.request(2, value=refused)
    for n in (2, 3):
        story.attempt(n).value = refused


def _never_answer_a_key(story: Story) -> None:
    for n in (2, 3, 4):
        story.attempt(n).value = None
        story.attempt(n).replied = None
        story.attempt(n).errors.clear()
        story.raised(n, "PersistenceError", "unknown")


def _apply_a_send_twice(story: Story) -> None:
    book = story.stored.entities[BOOK]
    story.entity(BOOK, journal=(*book.journal, book.journal[0]))


def _lose_an_accepted_send(story: Story) -> None:
    story.entity(BOOK, journal=story.stored.entities[BOOK].journal[1:])


def _apply_what_was_not_accepted(story: Story) -> None:
    story.fail(1, "PersistenceError", "no")


def _answer_a_repeat_differently(story: Story) -> None:
    story.attempt(3).value = {"request": 2, "place": 2, "run": "another", "heard": True}


def _replace_the_stored_reply(story: Story) -> None:
    value = story.stored.requests[2].value
    assert value is not None
    story.request(2, value={**value, "place": 3})


def _answer_another_payload(story: Story) -> None:
    attempt = story.attempt(4)
    attempt.value, attempt.replied = story.attempt(2).value, 200.0


def _refuse_the_same_payload(story: Story) -> None:
    story.raised(3, "PrimaryKeyConflict", "no", 2)


def _commit_the_state_of_another_run(story: Story) -> None:
    first, *rest = story.stored.entities[BOOK].journal
    story.entity(BOOK, journal=(replace(first, run="another"), *rest))


def _commit_a_reply_without_its_state(story: Story) -> None:
    story.entity(BOOK, journal=story.stored.entities[BOOK].journal[:2])


def _tell_what_is_not_stored(story: Story) -> None:
    story.attempt(1).value = {"request": 1, "place": 1, "run": "another", "heard": True}


def _read_what_was_undone(story: Story) -> None:
    story.read.value = {"lines": 2, "run": "another"}


def _read_what_never_came(story: Story) -> None:
    story.read.value = {"lines": 4, "run": "run2"}


def _lose_a_send_of_a_turn(story: Story) -> None:
    story.entity(BOOK, chained=2)


def _repeat_a_send_of_a_turn(story: Story) -> None:
    other = story.stored.entities[OTHER]
    story.entity(OTHER, journal=(*other.journal, other.journal[0]))


def _repeat_an_ask_of_a_turn(story: Story) -> None:
    other = story.stored.entities[OTHER]
    story.entity(OTHER, journal=(*other.journal, other.journal[1]))


def _lose_an_ask_of_a_turn(story: Story) -> None:
    story.entity(OTHER, journal=story.stored.entities[OTHER].journal[:1])


# ----- order, versions, epochs


def _overtake(story: Story) -> None:
    answers = story.stored.answers
    answers[0], answers[2] = answers[2], answers[0]


def _overtake_by_a_repeated_key(story: Story) -> None:
    answers = story.stored.answers
    answers[0], answers[1] = answers[1], answers[0]


def _overtake_in_turns(story: Story) -> None:
    other = story.stored.entities[OTHER]
    first = replace(other.journal[0], n=2)
    late = replace(other.journal[0], request=8)
    story.entity(OTHER, journal=(first, late))
    story.stored.requests[8] = StoredRequest(8, SHARD, OTHER, "note", None, None)
    story.stored.answers.append(Answer(60, 8, SHARD, 2))


def _skip_a_version(story: Story) -> None:
    changes = story.stored.changes
    changes[1] = replace(changes[1], version=3)


def _write_a_version_twice(story: Story) -> None:
    story.stored.changes.insert(1, story.stored.changes[0])


def _go_back_an_epoch(story: Story) -> None:
    story.stored.changes[0] = replace(story.stored.changes[0], epoch=2)


def _answer_without_a_version(story: Story) -> None:
    story.stored.requests[9] = StoredRequest(9, SHARD, BOOK, "refuse", "x", {"refused": True})


def _change_without_a_version(story: Story) -> None:
    story.stored.changes.append(Change(70, SHARD, DESK, 2, 2))


def _hand_out_an_old_token(story: Story) -> None:
    journal = story.stored.entities[BOOK].journal
    story.entity(BOOK, journal=(*journal[:2], replace(journal[2], epoch=0)))


def _hand_out_a_token_twice(story: Story) -> None:
    journal = story.stored.entities[BOOK].journal
    story.entity(BOOK, journal=(*journal[:2], replace(journal[2], version=1)))


def _reply_by_an_old_epoch(story: Story) -> None:
    story.stored.answers[2] = replace(story.stored.answers[2], epoch=1)


def _save_by_an_old_epoch(story: Story) -> None:
    story.stored.changes[2] = replace(story.stored.changes[2], epoch=1)


def _commit_before_the_shard_is_taken(story: Story) -> None:
    story.stored.answers[0] = replace(story.stored.answers[0], epoch=2)


def _take_an_epoch_twice(story: Story) -> None:
    story.stored.acquisitions.append(Acquisition(80, SHARD, 2))


# ----- callers and runners


def _raise_what_is_never_allowed(story: Story) -> None:
    story.fail(20, "EntityDefect", "yes")


def _raise_without_a_fault(story: Story) -> None:
    story.history.faults.clear()
    story.fail(20, "PersistenceError", "unknown")


def _raise_under_another_fault(story: Story) -> None:
    story.history.faults[:] = [Struck("valkey-killed", "valkey", 90.0, 95.0)]
    story.fail(20, "PersistenceError", "unknown")


def _raise_long_after_the_fault(story: Story) -> None:
    attempt = story.fail(20, "PersistenceError", "unknown")
    story.history.faults[:] = [Struck("postgres-killed", "postgres", 0.0, attempt.invoked - SETTLING - 0.1)]


def _take_too_much_memory(story: Story) -> None:
    story.history.samples.append(Sample(7, 101.0, MAX_RSS + 1))


def _grow(story: Story) -> None:
    start = MAX_RSS - MAX_GROWTH * 2
    story.history.samples[:] = [
        Sample(7, float(second), start + second * MAX_GROWTH // 200) for second in range(600)
    ]


def _end_a_runner(story: Story) -> None:
    story.ends.append("w1 ended with 1")


BAD: dict[Check, list[Spoil]] = {
    check_replies.every_accepted_request_is_answered: [
        _leave_pending,
        _lose_a_reply,
        _lose_a_request,
        _lose_what_an_error_called_accepted,
    ],
    check_replies.each_reply_is_stored_once: [_answer_twice],
    check_replies.each_key_is_applied_once: [
        _apply_a_key_twice,
        _apply_a_key_in_two_entities,
        _forget_a_key,
        _apply_what_was_refused,
        _never_answer_a_key,
    ],
    check_replies.each_send_is_applied_once: [
        _apply_a_send_twice,
        _lose_an_accepted_send,
        _apply_what_was_not_accepted,
    ],
    check_replies.a_key_has_one_reply: [_answer_a_repeat_differently, _replace_the_stored_reply],
    check_replies.another_payload_is_refused: [_answer_another_payload, _refuse_the_same_payload],
    check_replies.what_was_told_is_what_was_committed: [
        _commit_the_state_of_another_run,
        _commit_a_reply_without_its_state,
        _tell_what_is_not_stored,
    ],
    check_replies.reads_see_what_was_committed: [_read_what_was_undone, _read_what_never_came],
    check_replies.sends_of_turns_arrive_once: [
        _lose_a_send_of_a_turn,
        _repeat_a_send_of_a_turn,
        _repeat_an_ask_of_a_turn,
        _lose_an_ask_of_a_turn,
    ],
    check_order.order_of_senders: [_overtake, _overtake_by_a_repeated_key, _overtake_in_turns],
    check_order.versions_are_contiguous: [
        _skip_a_version,
        _write_a_version_twice,
        _go_back_an_epoch,
        _answer_without_a_version,
        _change_without_a_version,
    ],
    check_order.journals_are_in_order: [_hand_out_an_old_token, _hand_out_a_token_twice],
    check_order.no_commit_by_an_old_epoch: [
        _reply_by_an_old_epoch,
        _save_by_an_old_epoch,
        _commit_before_the_shard_is_taken,
        _take_an_epoch_twice,
    ],
    check_behaviour.errors_are_allowed: [
        _raise_what_is_never_allowed,
        _raise_without_a_fault,
        _raise_under_another_fault,
        _raise_long_after_the_fault,
    ],
    check_behaviour.memory_is_bounded: [_take_too_much_memory, _grow],
    check_behaviour.processes_end_when_told: [_end_a_runner],
}
CASES = [(check, spoil) for check, spoils in BAD.items() for spoil in spoils]


@pytest.mark.parametrize(("check", "spoil"), CASES, ids=[spoil.__name__.strip("_") for _, spoil in CASES])
def test_a_bad_history_is_caught(check: Check, spoil: Spoil) -> None:
    story = Story()
    assert not check(story.evidence).violations
    spoil(story)
    assert check(story.evidence).violations


def test_every_invariant_has_a_bad_history() -> None:
    assert BAD.keys() == set(INVARIANTS)


# ----- what is no violation


def test_an_unknown_outcome_may_be_either() -> None:
    story = Story()
    story.fail(20, "PersistenceError", "unknown")
    story.fail(21, "PersistenceError", "no")
    assert not check_replies.each_send_is_applied_once(story.evidence).violations


def test_an_error_while_its_fault_lasts_is_allowed() -> None:
    story = Story()
    attempt = story.fail(20, "PersistenceError", "unknown")
    story.history.faults[:] = [
        Struck("postgres-killed", "postgres", attempt.invoked, attempt.invoked + 0.5),
    ]
    assert not check_behaviour.errors_are_allowed(story.evidence).violations


def test_a_key_of_several_senders_has_no_place_in_their_order() -> None:
    story = Story()
    attempt = story.attempt(3)
    attempt.invocation = replace(attempt.invocation, sender="p2-1a")
    _overtake_by_a_repeated_key(story)
    assert not check_order.order_of_senders(story.evidence).violations


def test_the_place_of_a_repeat_is_that_of_the_attempt_that_was_stored() -> None:
    """The first attempt was never stored; its repeat, which came after number 1, was."""
    story = Story()
    first, repeat = story.attempt(2), story.attempt(3)
    first.invocation = replace(first.invocation, n=0)
    first.value, first.replied = None, None
    story.raised(2, "PersistenceError", "unknown", request_id=77)
    assert repeat.value is not None
    assert not check_order.order_of_senders(story.evidence).violations


def test_a_run_that_saw_too_little_fails() -> None:
    findings = judge(Story().evidence, 10.0, ["postgres-killed", "valkey-killed"])
    assert [finding.invariant for finding in findings if finding.violations] == ["the run has seen enough"]
    assert findings[-1].violations == [
        "6 operations were answered, fewer than 300",
        "1 faults, fewer than 2",
        "no fault valkey-killed",
    ]
