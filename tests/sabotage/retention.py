"""What keeps the promises when requests are removed."""

from tests.sabotage.safeguard import Edit, Safeguard

ROWS = "tests/postgres/test_retention.py::"
PURGER = "tests/runner/test_purger.py::"
SQL = "entityq/postgres/retention.sql"

_SAME_REPLY = " AND o.replied_at = due.replied_at AND o.reply IS NOT NULL"

RETENTION_SAFEGUARDS = (
    Safeguard(
        "row of an expired key",
        "P3",
        "a key goes with its reply",
        (Edit(SQL, "NOT page.keyed OR page.replied_at <= now() - term.keep_keys AS whole", "true AS whole"),),
        (
            ROWS + "test_no_insert_is_accepted_however_old_its_snapshot",
            ROWS + "test_no_insert_is_accepted_that_waits_while_its_key_expires",
            PURGER + "test_what_is_due_goes_and_a_late_repeat_is_refused",
        ),
    ),
    Safeguard(
        "late repeat",
        "P3",
        "a repeat of an expired key is taken for one whose reply is there",
        (Edit("entityq/client/settlement.py", "    if first.expired:\n", "    if False:\n"),),
        ("tests/client/test_settlement.py::test_a_known_key_whose_reply_is_no_longer_kept",),
    ),
    Safeguard(
        "reply that the purge has seen",
        "P1",
        "a request that is requeued while it is purged goes all the same",
        (
            Edit(
                SQL,
                f"    WHERE due.whole AND o.ctid = due.place{_SAME_REPLY}\n",
                "    WHERE due.whole AND o.request_id = due.request_id\n",
            ),
            Edit(
                SQL,
                f"    WHERE NOT due.whole AND o.ctid = due.place{_SAME_REPLY}\n",
                "    WHERE NOT due.whole AND o.request_id = due.request_id\n",
            ),
        ),
        (ROWS + "test_a_request_that_is_requeued_meanwhile_is_left_alone",),
    ),
    Safeguard(
        "request of an open dead letter",
        "P7",
        "a dead letter that nobody has handled loses its request",
        (
            Edit(
                SQL,
                "      AND NOT EXISTS (SELECT FROM dead_letter d\n"
                "                      WHERE d.request_id = page.request_id AND d.requeued_at IS NULL OFFSET 0)\n",
            ),
        ),
        (ROWS + "test_a_dead_letter_that_nobody_has_handled_keeps_its_request",),
    ),
    Safeguard(
        "waits that began before the insert",
        "P1",
        "who waits for a request that is not stored yet is told that it is gone",
        (Edit("entityq/client/waiter.py", " and self._all_accepted(request_id)"),),
        ("tests/client/test_waiter.py::test_what_may_not_be_accepted_yet_is_waited_for",),
    ),
    Safeguard(
        "rounds of the purge",
        "P6",
        "what was answered after the front had passed is never removed",
        (
            Edit(
                "entityq/runner/purge_plan.py",
                "        found.append(Stretch(self._round_at, self._round_until, None))\n",
            ),
        ),
        (PURGER + "test_what_is_answered_late_goes_too",),
    ),
)
