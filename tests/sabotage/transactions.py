"""The safeguards of transactional turns."""

from tests.sabotage.safeguard import Edit, Safeguard

SQL = "entityq/postgres/transaction.sql"
CONNECTIONS = "entityq/postgres/transaction.py"
TURNS = "entityq/runner/transactions.py"

FENCE = "tests/postgres/test_transaction.py::"
HANDLERS = "tests/runner/test_transactions.py::"
PROCESSES = "tests/promises/test_transactional_turns.py::"

TRANSACTION_SAFEGUARDS = (
    Safeguard(
        "epoch of a transactional turn",
        "P5",
        "a turn whose shard has another owner commits on its own connection",
        (
            Edit(
                SQL,
                "WHERE shard_id = %(shard_id)b AND epoch = %(epoch)b\nFOR SHARE OF shard",
                "WHERE shard_id = %(shard_id)b AND %(epoch)b::bigint > 0\nFOR SHARE OF shard",
            ),
        ),
        (
            FENCE + "test_a_turn_of_an_older_epoch_neither_begins_nor_commits",
            HANDLERS + "test_a_turn_whose_lease_is_gone_does_not_commit",
        ),
    ),
    Safeguard(
        "hold on the shard of a transactional turn",
        "P5",
        "the epoch is raised between a turn's look at it and its commit",
        (Edit(SQL, "\nFOR SHARE OF shard"),),
        (FENCE + "test_a_turn_that_commits_in_time_is_not_ended",),
    ),
    Safeguard(
        "end of a turn that stands still at its commit",
        "P5",
        "a shard whose row a dead owner's turn holds cannot be taken over",
        (
            Edit(
                "entityq/postgres/lease_session.py", "            await self._end_overdue_turns(unnumbered)\n"
            ),
        ),
        (FENCE + "test_the_taker_waits_for_a_turn_at_its_commit_and_ends_one_that_stands_still",),
    ),
    Safeguard(
        "time of a turn at its commit",
        "P5",
        "a turn that is about to commit is ended by whoever comes next",
        (
            Edit(
                "entityq/postgres/leases.sql",
                "make_interval(secs => %(overdue)b)",
                "make_interval(secs => 0 * %(overdue)b)",
            ),
        ),
        (FENCE + "test_a_turn_that_commits_in_time_is_not_ended",),
    ),
    Safeguard(
        "names of turns at their commit",
        "P5",
        "turns of other shards and clusters are ended with the one that is in the way",
        (
            Edit(
                "entityq/postgres/leases.sql",
                "|| %(cluster)b::bigint || ' ' || w.shard_id",
                "|| substr(%(cluster)b::bigint::text, 1, 0) || '%%'",
            ),
        ),
        (FENCE + "test_only_the_turn_that_holds_this_shard_is_ended",),
    ),
    Safeguard(
        "end of the turns of an evicted runner",
        "P5",
        "the next owner's handler waits for the locks of the frozen one's",
        (
            Edit(
                "entityq/postgres/heartbeat.py",
                "            await self._end_turns(Fence(self._schema, self._namespace, holder.incarnation))\n",
                "            pass\n",
            ),
        ),
        (PROCESSES + "test_frozen_in_the_middle_of_a_turn",),
    ),
    Safeguard(
        "end of the turns of a lost lease session",
        "P5",
        "the transactions of a life that is over go on",
        (Edit("entityq/runner/life.py", "            self._transactions.end()\n"),),
        (HANDLERS + "test_leases_that_are_lost_end_the_transactions",),
    ),
    Safeguard(
        "epochs at a reshard",
        "P5",
        "a turn of an old owner commits into a shard that is being moved",
        (
            Edit(
                "entityq/postgres/reshard.sql",
                "s SET epoch = s.epoch + 1\n    FROM shard_group g\n",
                "s SET epoch = s.epoch + 1\n    FROM (SELECT * FROM shard_group WHERE false) g\n",
            ),
        ),
        (FENCE + "test_a_reshard_waits_for_a_turn_at_its_commit",),
    ),
    Safeguard(
        "identity of a handler's transaction",
        "P2",
        "a handler that commits and begins again has its state stored without its first half",
        (Edit(TURNS, "        if found != self._id:\n            raise ENDED.error()\n"),),
        (HANDLERS + "test_a_transaction_that_the_handler_ends_is_a_defect[statements2]",),
    ),
    Safeguard(
        "rollback of a turn that raised",
        "P2",
        "the SQL of a handler is committed with its failure",
        (
            Edit(
                TURNS,
                "            if not isinstance(result, Defect) and result.outcome is Outcome.SUCCESS:\n",
                "            if not isinstance(result, Defect):\n",
            ),
        ),
        (HANDLERS + "test_a_failure_undoes_the_sql",),
    ),
    Safeguard(
        "deferred constraints",
        "P2",
        "what a handler has put off fails at the commit, again and again",
        (Edit(SQL, "SET CONSTRAINTS ALL IMMEDIATE; "),),
        (HANDLERS + "test_a_deferred_constraint_fails_before_anything_is_written",),
    ),
    Safeguard(
        "role of entityq's statements",
        "P2",
        "a handler that has taken another role cannot commit",
        (Edit(SQL, "; RESET ROLE"),),
        (HANDLERS + "test_the_session_is_the_users_and_nothing_stays_in_it",),
    ),
    Safeguard(
        "reset of a handler's session",
        "P2",
        "what a handler has set stays for the next one",
        (Edit(CONNECTIONS, '            await connection.execute(_SQL["reset_session"])\n'),),
        (HANDLERS + "test_the_session_is_the_users_and_nothing_stays_in_it",),
    ),
    Safeguard(
        "fate of a commit",
        "P2",
        "a turn whose commit lost its answer is dropped, and what it sends published by the sweep",
        (Edit(TURNS, "            if answered:\n                return applied\n"),),
        (HANDLERS + "test_an_answer_of_the_commit_that_is_lost_is_settled[committed]",),
    ),
    Safeguard(
        "places of turns that wait for a connection",
        "P6",
        "turns that wait for a transaction keep all others from starting",
        (
            Edit(
                TURNS,
                "        with waiting() if self._connections.all_busy else nullcontext():\n",
                "        with nullcontext():\n",
            ),
        ),
        (HANDLERS + "test_turns_wait_for_a_connection_and_hold_up_nobody",),
    ),
)
