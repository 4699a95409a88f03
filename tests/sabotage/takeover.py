"""The safeguards of evictions, of takeovers, and of the health that moves shards."""

from tests.sabotage.safeguard import Edit, Safeguard

BEATS = "tests/postgres/test_heartbeat.py::"
LEASES = "tests/postgres/test_lease_session.py::"
KEEPER = "tests/runner/test_lease_keeper.py::"
HEALTH = "tests/runner/test_health.py::"
REFUSALS = "tests/promises/test_refusals.py::"

TAKEOVER_SAFEGUARDS = (
    Safeguard(
        "incarnation at an eviction",
        "P5",
        "a runner that has joined again is evicted for the silence of its last incarnation",
        (
            Edit(
                "entityq/postgres/heartbeat.sql",
                "WHERE r.incarnation = %(incarnation)b AND r.pid",
                "WHERE %(incarnation)b::bigint > 0 AND r.pid",
            ),
        ),
        (BEATS + "test_what_is_not_as_it_was_read_is_not_ended",),
    ),
    Safeguard(
        "pid and start at an eviction",
        "P5",
        "the backend of somebody who got a frozen runner's pid is ended",
        (
            Edit(
                "entityq/postgres/heartbeat.sql",
                "AND r.pid = %(pid)b AND r.backend_start = %(backend_start)b\n",
                "AND r.pid = %(pid)b\n",
            ),
        ),
        (BEATS + "test_a_reused_pid_is_not_ended",),
    ),
    Safeguard(
        "a beat that is being written",
        "P5",
        "a runner is evicted between its beat and the commit of it",
        (Edit("entityq/postgres/heartbeat.sql", "    FOR NO KEY UPDATE SKIP LOCKED\n"),),
        (BEATS + "test_a_counter_that_moves_at_the_same_moment_wins",),
    ),
    Safeguard(
        "a session that joins meanwhile",
        "P5",
        "a session without a row is ended although it has one by now",
        (
            Edit(
                "entityq/postgres/heartbeat.sql",
                "\n  AND NOT EXISTS (SELECT 1 FROM runner r"
                " WHERE r.pid = a.pid AND r.backend_start = a.backend_start)",
            ),
        ),
        (BEATS + "test_a_session_that_has_joined_meanwhile_is_not_ended",),
    ),
    Safeguard(
        "sessions that are no runners'",
        "P5",
        "somebody's psql that holds a lock of ours is ended",
        (
            Edit(
                "entityq/runner/suspicion.py",
                "if holder.is_backend(self._me) or holder.incarnation is None:",
                "if holder.is_backend(self._me):",
            ),
        ),
        ("tests/runner/test_suspicion.py::test_who_is_not_judged",),
    ),
    Safeguard(
        "ends beside each other",
        "P5",
        "of a runner that dies together with its watcher nobody tells",
        (
            Edit(
                "entityq/runner/ring.py",
                "        ended.append(incarnation)\n",
                "        return [incarnation]\n",
            ),
        ),
        ("tests/runner/test_ring.py::test_each_end_is_told_by_exactly_one_survivor",),
    ),
    Safeguard(
        "the first heartbeat",
        "P5",
        "a runner that freezes right after it has joined has no counter, and is not judged",
        (Edit("entityq/postgres/leases.sql", "%(weight)b, 0)", "%(weight)b, NULL)"),),
        (BEATS + "test_a_beat_raises_the_own_counter_and_no_other",),
    ),
    Safeguard(
        "no lock without an epoch",
        "P5",
        "a lock whose epoch could not be raised stays, and nobody serves the shard",
        (
            Edit(
                "entityq/postgres/lease_session.py",
                "            await self._unlock(unnumbered)\n",
                "            pass\n",
            ),
        ),
        (LEASES + "test_an_epoch_that_cannot_be_incremented_leaves_no_lock",),
    ),
    Safeguard(
        "no lock of an acquisition that failed",
        "P5",
        "the locks of a statement that was undone stay",
        (
            Edit(
                "entityq/postgres/lease_session.py",
                "            await self._unlock(shard_ids, strict=False)\n",
            ),
        ),
        (LEASES + "test_an_acquisition_that_fails_leaves_no_lock",),
    ),
    Safeguard(
        "a row is a claim",
        "P5",
        "the row of a dead runner whose number is taken again counts as a member",
        (
            Edit(
                "entityq/postgres/leases.sql",
                "      AND (r.number = %(number)b\n           OR NOT EXISTS",
                "      AND (NOT EXISTS",
            ),
        ),
        (LEASES + "test_a_row_with_our_own_number_is_a_dead_ones",),
    ),
    Safeguard(
        "a row that is gone",
        "P5",
        "a runner goes on serving that the others do not count as a member",
        (
            Edit(
                "entityq/runner/lease_keeper.py",
                "        if all(member.incarnation != self._me for member in members):\n",
                "        if False:\n",
            ),
        ),
        (KEEPER + "test_a_runner_whose_row_is_gone_gives_up",),
    ),
    Safeguard(
        "termination time",
        "P5",
        "a turn that does not end keeps its shard for ever",
        (
            Edit(
                "entityq/runner/lease_keeper.py",
                "asyncio.timeout(self._termination_time)",
                "asyncio.timeout(None)",
            ),
        ),
        (KEEPER + "test_what_outlives_the_termination_time_is_abandoned",),
    ),
    Safeguard(
        "a shard that comes back while it leaves",
        "P5",
        "it waits for the next poll, because its next owner has left before it came",
        (
            Edit(
                "entityq/runner/lease_keeper.py",
                "        if self._assigned.get(shard_id) == self._me:  # again",
                "        if False:  # again",
            ),
        ),
        (KEEPER + "test_a_shard_that_is_given_up_for_one_who_left_meanwhile_is_taken_again_at_once",),
    ),
    Safeguard(
        "claims of what others left",
        "P1",
        "volatile requests that a dead owner has read are never answered",
        (
            Edit(
                "entityq/redis/consumer.py",
                "            claimed += [StreamEntry",
                "            _ = [StreamEntry",
            ),
        ),
        ("tests/redis/test_consumer.py",),
    ),
    Safeguard(
        "consumers that still read",
        "P1",
        "what a consumer is given between the look and its removal is lost",
        (
            Edit(
                "entityq/redis/consumer.py",
                'each[b"pending"] == 0 and each[b"idle"] >= GONE_MS',
                'each[b"pending"] == 0',
            ),
        ),
        ("tests/redis/test_consumer.py",),
    ),
    Safeguard(
        "one judge, and a healthy one",
        "P5",
        "a runner that is not well itself judges the others",
        (
            Edit(
                "entityq/runner/health.py",
                "        return [] if any(other.healthy for other in others) else others[:1]\n",
                "        return others[:1]\n",
            ),
        ),
        (HEALTH + "test_an_unhealthy_runner_judges_nobody_and_its_own_peer_has_another_judge",),
    ),
    Safeguard(
        "a list with one's own pod",
        "P5",
        "a selector that matches other pods makes all runners unhealthy",
        (Edit("entityq/runner/pod_check.py", "if self._host not in problems:", "if False:"),),
        ("tests/runner/test_health_checks.py::test_k8s_a_list_without_ones_own_pod_is_no_list_of_runners",),
    ),
    Safeguard(
        "end of a blocked loop",
        "P5",
        "a loop that a handler blocks keeps its shards for ever, because the heart beats on",
        (Edit("entityq/runner/loop_watch.py", "if self.seconds >= limit:", "if False:"),),
        ("tests/runner/test_loop_watch.py::test_at_the_limit_the_attempt_is_recorded_and_the_process_ends",),
    ),
    Safeguard(
        "record of an attempt",
        "P5",
        "nobody counts the processes that a request has ended",
        (Edit("entityq/postgres/attempts.sql", "attempts = attempts + 1", "attempts = attempts"),),
        ("tests/runner/test_blocked_loop.py::test_four_processes_end_and_then_the_caller_is_told",),
    ),
    Safeguard(
        "another cluster's Redis",
        "P8",
        "two clusters of one namespace share their streams",
        (Edit("entityq/redis/safety.py", "    if stored != str(cluster_id).encode():\n", "    if False:\n"),),
        (
            REFUSALS + "test_another_clusters_redis",
            REFUSALS + "test_a_redis_that_became_another_clusters_is_not_read",
        ),
    ),
    Safeguard(
        "a Redis that evicts",
        "P8",
        "a full Redis drops streams without a word",
        (Edit("entityq/redis/safety.py", 'if policy != "noeviction":', "if False:"),),
        (REFUSALS + "test_a_redis_that_evicts",),
    ),
)
