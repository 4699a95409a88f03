"""The safeguards of `entityq reshard`."""

from tests.sabotage.safeguard import Edit, Safeguard

ROWS = "tests/postgres/test_reshard.py::"
LIVE = "tests/promises/test_reshard.py::"

RESHARD_SAFEGUARDS = (
    Safeguard(
        "a closed group takes no requests",
        "P1",
        "a request goes into a shard whose rows are being moved",
        (
            Edit(
                "entityq/postgres/outbox.sql",
                "    JOIN shard_group g ON g.group_id = t.group_id AND g.open\n",
                "    JOIN shard_group g ON g.group_id = t.group_id\n",
            ),
        ),
        (LIVE + "test_meanwhile_nothing_is_accepted_and_afterwards_everything",),
    ),
    Safeguard(
        "a closed group gives out no leases",
        "P5",
        "a runner serves shards of a reshard that was killed, half of whose states are elsewhere",
        (Edit("entityq/postgres/leases.sql", "WHERE locked.mine AND g.open", "WHERE locked.mine"),),
        (ROWS + "test_a_closed_groups_shards_and_old_ones_are_not_leased",),
    ),
    Safeguard(
        "a turn does not send to a closed group",
        "P2",
        "what a turn sends goes into a shard whose rows are being moved",
        (
            Edit(
                "entityq/postgres/turns.sql",
                "      AND turn.position NOT IN (SELECT position FROM sent WHERE NOT open)\n",
            ),
        ),
        (
            "tests/promises/test_reshard_groups.py::test_other_groups_go_on_and_a_turn_that_sends_to_the_closed_one_waits",
        ),
    ),
    Safeguard(
        "transactions of before the closing",
        "P1",
        "rows move while somebody still inserts into the old shards",
        (Edit("entityq/postgres/reshard.py", "        await self._outlive_inserts(deadline)\n"),),
        (LIVE + "test_a_transaction_that_may_not_have_seen_the_closing_is_waited_for",),
    ),
    Safeguard(
        "a reshard owns the shards",
        "P5",
        "rows move while a runner still commits",
        (
            Edit(
                "entityq/postgres/reshard.py",
                "            if self._taken >= keys:\n",
                "            if True:\n",
            ),
        ),
        (LIVE + "test_shards_that_are_held_call_it_off",),
    ),
    Safeguard(
        "what moves is not opened again",
        "P1",
        "a reshard that was stopped at the wrong moment leaves half of the states out of sight",
        (
            Edit(
                "entityq/postgres/reshard.sql",
                " AND phase = 'closing' RETURNING namespace",
                " RETURNING namespace",
            ),
        ),
        (ROWS + "test_what_may_have_begun_to_move_is_not_opened_again",),
    ),
    Safeguard(
        "new shards have new ids",
        "P5",
        "a process with the facts of before a reshard acts on other shards than it means",
        (
            Edit(
                "entityq/postgres/reshard.sql",
                "SELECT max(first_shard + shards) AS first_free",
                "SELECT 0 AS first_free",
            ),
        ),
        (ROWS + "test_nothing_is_lost_or_misplaced",),
    ),
    Safeguard(
        "epochs above all old ones",
        "P5",
        "a fencing token of after a reshard is smaller than one of before",
        (Edit("entityq/postgres/reshard.py", '"epoch": epoch + 1', '"epoch": 0'),),
        (LIVE + "test_growing_and_shrinking_while_a_runner_and_a_client_live",),
    ),
    Safeguard(
        "entries in the wrong shard",
        "P2",
        "a handler runs with an empty state, because the entity's is in another shard",
        (
            Edit(
                "entityq/runner/dispatcher.py",
                "if self._shard_id_of(envelope.address) not in (None, owned.shard_id):",
                "if False:",
            ),
        ),
        (LIVE + "test_an_entry_in_a_shard_that_is_not_its_entitys_is_not_run",),
    ),
    Safeguard(
        "sends to a closed group keep their order",
        "P4",
        "each send tries again on its own",
        (
            Edit(
                "entityq/client/closed_groups.py",
                "if queue is None or queue.first is send:",
                "if True:",
            ),
        ),
        (LIVE + "test_what_is_sent_meanwhile_is_accepted_in_the_order_of_sending",),
    ),
)
