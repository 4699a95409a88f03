"""All invariants of a run, and whether the run has seen enough to say anything."""

from collections.abc import Callable, Sequence

from tests.chaos import check_behaviour, check_order, check_replies
from tests.chaos.evidence import Evidence, Finding

INVARIANTS: Sequence[Callable[[Evidence], Finding]] = (
    check_replies.every_accepted_request_is_answered,
    check_replies.each_reply_is_stored_once,
    check_replies.each_key_is_applied_once,
    check_replies.each_send_is_applied_once,
    check_replies.a_key_has_one_reply,
    check_replies.another_payload_is_refused,
    check_replies.what_was_told_is_what_was_committed,
    check_replies.reads_see_what_was_committed,
    check_replies.sends_of_turns_arrive_once,
    check_order.order_of_senders,
    check_order.versions_are_contiguous,
    check_order.journals_are_in_order,
    check_order.no_commit_by_an_old_epoch,
    check_behaviour.errors_are_allowed,
    check_behaviour.memory_is_bounded,
    check_behaviour.processes_end_when_told,
)

# A run that has seen less says nothing: answered operations and faults per second of its faults.
MIN_OPERATIONS = 30.0
MIN_FAULTS = 0.25


def judge(evidence: Evidence, seconds: float, kinds: Sequence[str]) -> list[Finding]:
    return [check(evidence) for check in INVARIANTS] + [_enough(evidence, seconds, kinds)]


def _enough(evidence: Evidence, seconds: float, kinds: Sequence[str]) -> Finding:
    finding = Finding("the run has seen enough")
    history = evidence.history
    answered = sum(attempt.value is not None for attempt in history.attempts.values())
    wanted = int(MIN_OPERATIONS * seconds)
    finding.check(answered >= wanted, f"{answered} operations were answered, fewer than {wanted}")
    faults, wanted = len(history.faults), max(len(kinds), int(MIN_FAULTS * seconds))
    finding.check(faults >= wanted, f"{faults} faults, fewer than {wanted}")
    for kind in sorted(set(kinds) - {fault.kind for fault in history.faults}):
        finding.check(False, f"no fault {kind}")
    return finding
