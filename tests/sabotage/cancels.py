"""The safeguards of cancels."""

from tests.sabotage.safeguard import Edit, Safeguard

CANCELS = "tests/promises/test_cancels.py::"
BEHAVIOURS = "tests/behaviours/test_cancellation.py::"
INTERRUPTION = "tests/runner/test_interruption.py::"
STATEMENTS = "tests/postgres/test_cancellation.py::"

TURN = "entityq/runner/turn.py"

CANCEL_SAFEGUARDS = (
    Safeguard(
        "marks of cancels at a takeover",
        "P3",
        "a cancel that the last owner did not hear of is lost",
        (Edit("entityq/runner/dispatcher.py", "        if row.cancelled:\n", "        if not row:\n"),),
        (CANCELS + "test_a_cancel_is_not_lost_in_a_failover",),
    ),
    Safeguard(
        "marks of cancels in the sweep",
        "P3",
        "a cancel whose notification was lost is lost",
        (Edit("entityq/runner/sweeper.py", "            if row.cancelled:\n", "            if not row:\n"),),
        (CANCELS + "test_a_cancel_that_nobody_has_told_is_found_by_the_sweep",),
    ),
    Safeguard(
        "a set-back of what is cancelled",
        "P3",
        "a request that fails while it is cancelled waits for its next attempt, or is parked without its mark",
        (
            Edit(
                "entityq/postgres/attempts.sql",
                "          AND pending.retries = f.retries AND NOT pending.cancelled\n",
                "          AND pending.retries = f.retries\n",
            ),
            Edit(
                "entityq/postgres/attempts.sql",
                "    WHERE NOT f.parked AND p.ctid = f.place AND p.retries = f.retries AND NOT p.cancelled\n",
                "    WHERE NOT f.parked AND p.ctid = f.place AND p.retries = f.retries\n",
            ),
            Edit(
                "entityq/postgres/attempts.sql",
                "    WHERE f.parked AND p.ctid = f.place AND p.retries = f.retries AND NOT p.cancelled\n",
                "    WHERE f.parked AND p.ctid = f.place AND p.retries = f.retries\n",
            ),
        ),
        (CANCELS + "test_what_fails_while_it_is_cancelled_is_not_set_back",),
    ),
    Safeguard(
        "a defect of what is cancelled",
        "P3",
        "a handler that raises when it is interrupted is run again",
        (
            Edit(
                "entityq/runner/turns.py",
                "if isinstance(result, Defect) and request.cancelled:",
                "if isinstance(result, Defect) and not request:",
            ),
            Edit(
                "entityq/postgres/attempts.sql",
                "          AND pending.retries = f.retries AND NOT pending.cancelled\n",
                "          AND pending.retries = f.retries\n",
            ),
            Edit(
                "entityq/postgres/attempts.sql",
                "    WHERE NOT f.parked AND p.ctid = f.place AND p.retries = f.retries AND NOT p.cancelled\n",
                "    WHERE NOT f.parked AND p.ctid = f.place AND p.retries = f.retries\n",
            ),
        ),
        (BEHAVIOURS + "test_a_handler_that_ends_otherwise_has_its_own_reply",),
    ),
    Safeguard(
        "end of a cancellation",
        "P1",
        "the commit of an interrupted turn is cut off, too",
        (Edit(TURN, "            task.uncancel()\n", "            pass\n"),),
        (INTERRUPTION + "test_a_cancel_interrupts_the_handler_and_leaves_nothing",),
    ),
    Safeguard(
        "end of the time in which a handler can be interrupted",
        "P1",
        "a turn that waits for its commit is cut off",
        (Edit(TURN, "        request.interruptible = None\n", ""),),
        (INTERRUPTION + "test_nothing_is_interrupted_when_the_handler_has_ended",),
    ),
    Safeguard(
        "one interruption",
        "P3",
        "a second cancel interrupts the handler while it cleans up",
        (
            Edit(
                "entityq/runner/request.py",
                "if not self.cancelled and self.interruptible",
                "if self.interruptible",
            ),
        ),
        (BEHAVIOURS + "test_a_handler_is_interrupted_once_and_waited_for",),
    ),
    Safeguard(
        "handlers in threads are waited for",
        "P4",
        "a turn begins while the handler of a cancelled one changes the entity",
        (Edit(TURN, "not message.is_async or message.uninterruptible:", "message.uninterruptible:"),),
        (BEHAVIOURS + "test_a_handler_in_a_thread_runs_to_its_end_for_nothing",),
    ),
    Safeguard(
        "what a cancelled handler in a thread returns",
        "P3",
        "a request that was cancelled in time has another reply",
        (Edit(TURN, "    return not request.cancelled or message.is_async or", "    return True or"),),
        (BEHAVIOURS + "test_a_handler_in_a_thread_runs_to_its_end_for_nothing",),
    ),
    Safeguard(
        "a cancelled request leaves the mailbox",
        "P3",
        "it is run, although it is answered",
        (
            Edit(
                "entityq/runner/activation.py",
                "                del self.mailbox[place]\n                self._limits.left(request)\n",
                "                self._limits.left(request)\n",
            ),
        ),
        (BEHAVIOURS + "test_a_request_behind_others_is_answered_without_running",),
    ),
    Safeguard(
        "places of cancelled requests",
        "P6",
        "each cancel of a waiting request makes the room of its runner smaller",
        (
            Edit(
                "entityq/runner/activations.py",
                "        if request is not None:\n            self._prefetch.remove()\n",
                "        if request is not None:\n",
            ),
        ),
        (BEHAVIOURS + "test_a_request_behind_others_is_answered_without_running",),
    ),
    Safeguard(
        "end of a backoff whose request is cancelled",
        "P1",
        "what is behind it waits for an attempt that never comes",
        (
            Edit(
                "entityq/runner/cancels.py",
                "        self._deferrals.end_backoff(owned.shard_id, row.address)\n",
            ),
        ),
        (BEHAVIOURS + "test_a_backoff_ends_when_its_request_is_cancelled",),
    ),
    Safeguard(
        "who answers a request whose time has not come",
        "P3",
        "a reply of the owner, which has just fired the timer, is replaced",
        (
            Edit(
                "entityq/postgres/cancellation.sql",
                "    FROM removed\n    CROSS JOIN LATERAL (SELECT ctid AS place FROM outbox "
                "WHERE outbox.request_id = removed.request_id OFFSET 0) found\n"
                "    WHERE o.ctid = found.place AND o.reply IS NULL\n",
                "    WHERE o.request_id = %(request_id)s\n",
            ),
        ),
        (STATEMENTS + "test_an_owner_that_fires_the_timer_first_gets_the_mark",),
    ),
)
