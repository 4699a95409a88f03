"""The safeguards of signals."""

from tests.sabotage.safeguard import Edit, Safeguard

SIGNALS = "tests/runner/test_signals.py::"
TOKENS = "tests/test_signal_token.py::"
BACKOFFS = "tests/runner/test_backoffs.py::"

STATEMENTS = "entityq/postgres/signals.sql"

SIGNAL_SAFEGUARDS = (
    Safeguard(
        "the look at the value when a wait is stored",
        "P1",
        "a signal that comes while the wait is being stored wakes nobody",
        (
            Edit(
                STATEMENTS,
                "waited.request_id = here.request_id AND NOT waited.signalled\n    WHERE NOT here.parked",
                "waited.request_id = here.request_id\n    WHERE NOT here.parked",
            ),
            Edit(STATEMENTS, "FROM waited WHERE signalled", "FROM waited WHERE signalled AND false"),
        ),
        (SIGNALS + "test_a_signal_whose_row_is_locked_while_the_suspension_is_stored_is_not_lost",),
    ),
    Safeguard(
        "the notification of a signal",
        "P1",
        "an entity whose first request has its signal waits until its shard has another owner",
        (Edit(STATEMENTS, "FROM resumed, signalled\n", "FROM resumed, signalled WHERE false\n"),),
        (SIGNALS + "test_a_wait_that_another_runner_stored_is_ended_at_the_owner",),
    ),
    Safeguard(
        "signals that are heard before what was read earlier",
        "P1",
        "a read that was sent before a signal makes its entity wait for ever",
        (
            Edit(
                "entityq/runner/deferrals.py",
                "if self._told_since((shard_id, address), as_of):",
                "if not shard_id:",
            ),
        ),
        (BACKOFFS + "test_a_signal_counts_against_what_was_read_before_it",),
    ),
    Safeguard(
        "only who stores a value wakes",
        "P2",
        "a second signal makes a handler run that waits for another one",
        (Edit(STATEMENTS, "      AND s.xmin = pg_current_xact_id()::xid\n", ""),),
        (SIGNALS + "test_two_signals_in_order_and_the_second_one_early",),
    ),
    Safeguard(
        "the first value stands",
        "P3",
        "a second signal changes what was decided",
        (Edit(STATEMENTS, "WHERE signal.signalled_at IS NULL\nRETURNING", "RETURNING"),),
        (SIGNALS + "test_a_signal_before_the_wait_is_kept",),
    ),
    Safeguard(
        "the end of a wait in vain",
        "P7",
        "a handler whose wait has timed out waits again, for ever",
        (Edit("entityq/runner/waits.py", "    if request.suspended:\n", "    if not request:\n"),),
        (SIGNALS + "test_its_time_passes_and_the_wait_raises",),
    ),
    Safeguard(
        "a request that has waited is not expired",
        "P1",
        "a request that was started in time is answered as if it was not, because its signal came late",
        (
            Edit(
                "entityq/runner/turns.py",
                " and not await has_waited(self._signals, request)",
                "",
            ),
        ),
        (SIGNALS + "test_the_time_of_a_wait_does_not_count_for_expires",),
    ),
    Safeguard(
        "a handler that catches the end of its attempt",
        "P7",
        "a handler that did not get its signal goes on, and commits",
        (
            Edit(
                "entityq/runner/turns.py",
                "if signals.waits_for is not None:\n            result",
                "if signals.waits_for == signals:\n            result",
            ),
        ),
        (SIGNALS + "test_a_handler_that_swallows_the_end_is_a_defect",),
    ),
    Safeguard(
        "the code of a token",
        "P8",
        "whoever knows a request's id can decide for others",
        (
            Edit(
                "entityq/signal_token.py",
                "if not hmac.compare_digest(made.encode(), token.encode()):",
                "if not made:",
            ),
        ),
        (
            TOKENS + "test_another_key_makes_another_token",
            SIGNALS + "test_forged_and_foreign_tokens_write_nothing",
        ),
    ),
)
