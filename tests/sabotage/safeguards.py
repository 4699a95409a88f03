"""The table of safeguards: what keeps the promises, and the test that knows."""

from tests.sabotage.cancels import CANCEL_SAFEGUARDS
from tests.sabotage.ownership import OWNERSHIP_SAFEGUARDS
from tests.sabotage.reshard import RESHARD_SAFEGUARDS
from tests.sabotage.retention import RETENTION_SAFEGUARDS
from tests.sabotage.safeguard import Edit, Safeguard
from tests.sabotage.schedules import SCHEDULE_SAFEGUARDS
from tests.sabotage.signals import SIGNAL_SAFEGUARDS
from tests.sabotage.takeover import TAKEOVER_SAFEGUARDS
from tests.sabotage.transactions import TRANSACTION_SAFEGUARDS

SCENARIOS = "tests/promises/test_scenarios.py::"
CLIENTS = "tests/client/test_clients.py::"
INSERTER = "tests/client/test_inserter.py::"
LEASES = "tests/postgres/test_lease_session.py::"
PINNED = "tests/postgres/test_pinned_connection.py::"
KEEPER = "tests/runner/test_lease_keeper.py::"
COMMITTER = "tests/runner/test_committer.py::"
INTAKE = "tests/runner/test_intake.py::"

SAFEGUARDS = (
    # ----- accepted means durable
    Safeguard(
        "sweep",
        "P1",
        "nobody looks for requests that were stored and never published",
        (
            Edit(
                "entityq/runner/sweeper.py",
                "        position = await self._backlog.position()\n",
                "        return\n        position = await self._backlog.position()\n",
            ),
        ),
        (SCENARIOS + "test_a_producer_is_killed_between_insert_and_publish",),
    ),
    Safeguard(
        "catching up at takeover",
        "P1",
        "a new owner serves from the stream at once",
        (
            Edit(
                "entityq/runner/intake.py",
                "        self._catching_up = True\n        self._waiting: deque",
                "        self._catching_up = False\n        self._waiting: deque",
            ),
        ),
        (
            "tests/runner/test_catching_up.py::test_what_nobody_published_is_found_by_who_takes_the_shard_over",
        ),
    ),
    Safeguard(
        "notification while Redis is down",
        "P1",
        "nobody tells the owner of a request that could not be published",
        (
            Edit(
                "entityq/redis/publisher.py",
                "            unpublished = {shard_id for _, shard_id, _ in rows}\n",
                "            pass\n",
            ),
        ),
        (SCENARIOS + "test_a_client_that_is_cut_off_from_redis_tells_the_owner_by_notify",),
    ),
    Safeguard(
        "catching up after Redis was away",
        "P1",
        "what was published to a Redis that lost it is not looked for",
        (
            Edit(
                "entityq/runner/reader.py",
                "                owned.must_catch_up()\n",
                "                pass\n",
            ),
        ),
        ("tests/runner/test_reader.py::test_a_flush_is_noticed_when_no_sweep_looks",),
    ),
    Safeguard(
        "own pending entries after an error",
        "P1",
        "entries whose reply was lost on the way are not read again",
        (Edit("entityq/runner/reader.py", "            self._pass_on(pending)\n"),),
        ("tests/runner/test_reader.py::test_after_a_lost_connection_the_own_pending_entries_are_read",),
    ),
    Safeguard(
        "missing consumer groups",
        "P1",
        "groups that a flush removed are not made again",
        (Edit("entityq/runner/reader.py", "            await self._groups.join(streams)\n"),),
        ("tests/runner/test_reader.py::test_missing_groups_are_made_again_and_nothing_is_lost",),
    ),
    Safeguard(
        "tries of a first send",
        "P1",
        "a connection that is lost while the client opens fails what is sent first",
        (
            Edit(
                "entityq/client/opening.py",
                "                if pause is None or self.given_up:\n",
                "                if True:\n",
            ),
            Edit(
                "entityq/client/clients.py",
                "                if place.opening.given_up or loop.time() >= began + POLICY.total:\n",
                "                if True:\n",
            ),
        ),
        (
            CLIENTS + "test_an_opening_that_loses_its_connection_is_tried_again_and_keeps_the_order",
            CLIENTS + "test_so_is_that_of_sync_code",
        ),
    ),
    # ----- effects once
    Safeguard(
        "gate of unanswered requests",
        "P2",
        "a turn of a request that has its reply commits again",
        (
            Edit(
                "entityq/postgres/turns.sql",
                "    FROM turn\n    CROSS JOIN LATERAL (\n        SELECT ctid AS place FROM pending\n"
                "        WHERE pending.shard_id = turn.shard_id AND pending.seq = turn.seq\n"
                "        OFFSET 0\n    ) p\n",
                "    FROM turn\n    LEFT JOIN LATERAL (\n        SELECT ctid AS place FROM pending\n"
                "        WHERE pending.shard_id = turn.shard_id AND pending.seq = turn.seq\n"
                "        OFFSET 0\n    ) p ON true\n",
            ),
            Edit(
                "entityq/postgres/turns.sql",
                "    DELETE FROM pending p\n    USING found\n    WHERE p.ctid = found.pending_place\n"
                "    RETURNING found.*\n), replied AS (",
                "    SELECT * FROM found\n), gone AS (\n    DELETE FROM pending p USING found\n"
                "    WHERE p.ctid = found.pending_place\n), replied AS (",
            ),
            Edit("entityq/postgres/turns.sql", " AND o.reply IS NULL"),
        ),
        (COMMITTER + "test_a_turn_whose_request_was_answered_meanwhile_writes_nothing",),
    ),
    Safeguard(
        "version check",
        "P2",
        "a turn overwrites a state that is not the one it was given",
        (
            Edit(
                "entityq/postgres/turns.sql",
                "(turn.version IS NULL OR turn.version = coalesce(e.version, 0))",
                "TRUE",
            ),
            Edit(
                "entityq/postgres/turns.sql",
                " AND e.version = answered.version\n    RETURNING e.entity_id\n), removed",
                "\n    RETURNING e.entity_id\n), removed",
            ),
        ),
        (SCENARIOS + "test_a_state_that_was_changed_meanwhile_is_not_overwritten",),
    ),
    Safeguard(
        "a turn is written wholly or not at all",
        "P2",
        "a writer between snapshot and write leaves half a turn",
        (Edit("entityq/postgres/turns.sql", "SELECT 1 / CASE WHEN", "SELECT 1 / CASE WHEN true OR"),),
        (COMMITTER + "test_a_state_changed_between_the_snapshot_and_the_write_is_not_half_applied",),
    ),
    Safeguard(
        "state after a turn that raised",
        "P2",
        "what a failed turn did to the state in memory stays there",
        (
            Edit(
                "entityq/runner/turns.py",
                "        if commit.reply.outcome is not Outcome.SUCCESS:\n            self._restore(activation)\n",
            ),
        ),
        ("tests/runner/test_turns.py::test_a_failure_is_typed_and_leaves_the_state_as_it_was",),
    ),
    Safeguard(
        "isolation of poisoned turns",
        "P2",
        "one turn that cannot be written fails all that commit with it",
        (Edit("entityq/runner/committer.py", "            if len(batch) > 1:\n", "            if False:\n"),),
        (COMMITTER + "test_a_locked_row_fails_its_own_turn_only",),
    ),
    Safeguard(
        "one request id for all tries",
        "P2",
        "an insert whose answer was lost is tried again as another request",
        (
            Edit(
                "entityq/client/settlement.py",
                "        if send.lost and _is_same(request, same_id):\n"
                "            stored = Stored(same_id.shard_id, same_id.seq, timed=request.waits)\n"
                "            return Acceptance(request.request_id, stored)\n",
            ),
        ),
        (INSERTER + "test_a_lost_answer_is_asked_for_again_with_the_same_ids",),
    ),
    # ----- same primary key, same reply
    Safeguard(
        "one row per key",
        "P3",
        "a known primary key is stored as a new request",
        (
            Edit(
                "entityq/postgres/migrations/0001_initial.sql",
                "CREATE UNIQUE INDEX outbox_key_digest",
                "CREATE INDEX outbox_key_digest",
            ),
        ),
        (SCENARIOS + "test_two_clients_send_one_key_at_once",),
    ),
    Safeguard(
        "payload hash",
        "P3",
        "a known key with another payload joins the first request",
        (
            Edit(
                "entityq/client/settlement.py", "if first.payload_hash != request.payload_hash:", "if False:"
            ),
        ),
        ("tests/client/test_settlement.py::test_a_known_key_with_another_payload_is_refused",),
    ),
    Safeguard(
        "canonical payloads",
        "P3",
        "a deploy that adds an optional argument makes a conflict of a retry",
        (
            Edit(
                "entityq/canonical.py",
                "if name not in defaults or _packed(value) != _packed(_canonical(defaults[name]))",
                "if True",
            ),
        ),
        (SCENARIOS + "test_an_added_optional_argument_makes_no_conflict_of_a_retry",),
    ),
    Safeguard(
        "memory of running requests",
        "P3",
        "a request that is under way is delivered a second time",
        (
            Edit(
                "entityq/runner/intake.py",
                "        if self.knows(request_id, seq):\n            return Verdict.DROP\n        self._live",
                "        self._live",
            ),
        ),
        (INTAKE + "test_a_request_answered_while_a_read_is_on_its_way_is_not_delivered_again",),
    ),
    # ----- one at a time, in order
    Safeguard(
        "gaps in a sender's numbers",
        "P4",
        "an entry is taken although the one before it is missing",
        (Edit("entityq/runner/sender_order.py", "if n == expected:", "if n >= expected:"),),
        (SCENARIOS + "test_order_holds_where_a_stream_has_lost_the_middle_one_of_three",),
    ),
    Safeguard(
        "numbers of sends whose fate is unknown",
        "P4",
        "a send that may be stored takes no number",
        (
            Edit(
                "entityq/client/inserter.py",
                "        if send.lost:\n            self._publishing.burn(1)\n",
            ),
        ),
        (INSERTER + "test_a_lost_answer_that_nobody_gives_again_is_unknown_and_burns_a_number",),
    ),
    Safeguard(
        "outbox order",
        "P4",
        "requests of a batch are numbered in the order of their keys",
        (Edit("entityq/postgres/outbox.sql", "    ORDER BY r.position\n", "    ORDER BY r.key_digest\n"),),
        (SCENARIOS + "test_a_batch_is_answered_in_the_order_sent_after_a_takeover_with_redis_flushed",),
    ),
    Safeguard(
        "full mailboxes",
        "P4",
        "an entity with requests left in the outbox takes newer ones from the stream",
        (Edit("entityq/runner/mailbox.py", "if persisted and deferred:", "if False:"),),
        ("tests/runner/test_mailbox.py",),
    ),
    Safeguard(
        "an activation ends before its shard is given up",
        "P4",
        "the next owner starts while the last turn still runs",
        (
            Edit(
                "entityq/runner/lease_keeper.py",
                "                await self._owner.release(shard_id)\n",
                "                pass\n",
            ),
        ),
        (KEEPER + "test_a_second_runner_is_given_its_part_by_the_control_channel",),
    ),
    # ----- dead and frozen owners
    Safeguard(
        "fence of the committer",
        "P5",
        "a turn that started under another lease commits",
        (
            Edit(
                "entityq/runner/committer.py", "            if self._stale(commit):", "            if False:"
            ),
        ),
        (COMMITTER + "test_a_turn_of_another_lease_is_refused_without_a_statement",),
    ),
    Safeguard(
        "epoch",
        "P5",
        "a new lease has the number of the last one",
        (Edit("entityq/postgres/leases.sql", "SET epoch = s.epoch + 1", "SET epoch = s.epoch"),),
        (LEASES + "test_a_shard_has_one_holder",),
    ),
    Safeguard(
        "locks are not taken twice",
        "P5",
        "a second lock on the same shard survives its release",
        (
            Edit(
                "entityq/postgres/lease_session.py",
                "missing = [shard_id for shard_id in wanted if shard_id not in self._epochs]",
                "missing = wanted",
            ),
        ),
        (LEASES + "test_locks_do_not_stack",),
    ),
    Safeguard(
        "locks are read, not believed",
        "P5",
        "a lock that is gone is not noticed",
        (
            Edit(
                "entityq/postgres/lease_session.py",
                '            if missing:\n                self._fail(f"the lock of shard {min(missing)} is gone")\n',
            ),
        ),
        (LEASES + "test_a_shard_lock_that_is_gone_ends_the_session",),
    ),
    Safeguard(
        "deadline of the lease connection",
        "P5",
        "a statement that hangs holds the leases for ever",
        (Edit("entityq/postgres/pinned_connection.py", "timeout=self._deadline)", "timeout=None)"),),
        (PINNED + "test_a_frozen_server_holds_nobody_up",),
    ),
    Safeguard(
        "watch on the lease connection",
        "P5",
        "the end of an idle lease connection is found out by the next statement",
        (
            Edit(
                "entityq/postgres/pinned_connection.py",
                "        self._loop.add_reader(self._socket.fileno(), self._readable)",
                "        pass",
            ),
        ),
        (PINNED + "test_the_end_is_noticed_while_idle",),
    ),
    Safeguard(
        "a cancelled statement ends the lease connection",
        "P5",
        "nobody knows whether the lock of a cancelled statement was taken",
        (
            Edit(
                "entityq/postgres/pinned_connection.py",
                '                self.end("a statement was cancelled")\n',
            ),
        ),
        (PINNED + "test_a_cancelled_statement_ends_it_at_once",),
    ),
    Safeguard(
        "a ghost is known by pid and start",
        "P5",
        "the backend of somebody who got a dead runner's pid is ended",
        (
            Edit(
                "entityq/postgres/leases.sql",
                "WHERE pid = %(pid)b AND backend_start = %(backend_start)b",
                "WHERE pid = %(pid)b AND (%(backend_start)b)::timestamptz IS NOT NULL",
            ),
        ),
        (LEASES + "test_a_ghost_is_ended_only_when_pid_and_start_are_its_own",),
    ),
    # ----- refusals
    Safeguard(
        "transaction poolers",
        "P8",
        "leases are taken through a pooler that gives the session to others",
        (Edit("entityq/postgres/safety.py", "if other == pid or again != {pid}:", "if False:"),),
        ("tests/promises/test_refusals.py::test_a_transaction_pooler_for_the_leases",),
    ),
    *OWNERSHIP_SAFEGUARDS,
    *TAKEOVER_SAFEGUARDS,
    *RESHARD_SAFEGUARDS,
    *RETENTION_SAFEGUARDS,
    *TRANSACTION_SAFEGUARDS,
    *CANCEL_SAFEGUARDS,
    *SCHEDULE_SAFEGUARDS,
    *SIGNAL_SAFEGUARDS,
)
