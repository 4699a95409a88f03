"""The safeguards against dead, frozen and blocked owners."""

from tests.sabotage.safeguard import Edit, Safeguard

HEART = "tests/runner/test_heart.py::"
PLAN = "tests/runner/test_lease_plan.py::"
CATCHING_UP = "tests/runner/test_catching_up.py::"

OWNERSHIP_SAFEGUARDS = (
    Safeguard(
        "death notice",
        "P5",
        "a runner that dies is found out by polling",
        (
            Edit(
                "entityq/runner/pulse.py",
                "        finally:\n            listener.runner_ended(incarnation)\n",
                "        finally:\n            pass\n",
            ),
        ),
        (HEART + "test_the_end_of_the_peer_is_told",),
    ),
    Safeguard(
        "eviction",
        "P5",
        "a frozen owner keeps its shards",
        (Edit("entityq/runner/suspicion.py", "        return suspects\n", "        return []\n"),),
        (HEART + "test_who_is_silent_is_evicted",),
    ),
    Safeguard(
        "gaps between reads",
        "P5",
        "a stall of Postgres, or of the observer, evicts everybody",
        (
            Edit(
                "entityq/runner/suspicion.py",
                "lost = uncounted(asked - self._asked, answered - self._asked, self._gap, self._lease_time)",
                "lost = 0.0",
            ),
        ),
        (
            HEART + "test_a_stall_of_postgres_evicts_nobody",
            HEART + "test_a_stall_of_the_observer_evicts_nobody",
        ),
    ),
    Safeguard(
        "unchanged counter",
        "P5",
        "a runner that has just woken up is evicted",
        (Edit("entityq/postgres/heartbeat.sql", "      AND r.heartbeat = %(heartbeat)b\n"),),
        ("tests/postgres/test_heartbeat.py::test_what_is_not_as_it_was_read_is_not_ended",),
    ),
    Safeguard(
        "code without a heartbeat",
        "P5",
        "a rollout evicts the runners of the old version",
        (
            Edit(
                "entityq/runner/suspicion.py",
                "return holder.row_of is None or holder.heartbeat is not None",
                "return True",
            ),
        ),
        ("tests/runner/test_suspicion.py::test_who_is_not_judged",),
    ),
    Safeguard(
        "freshness of volatile replies",
        "P5",
        "a runner that wakes up answers from a state that another one has changed",
        (
            Edit(
                "entityq/runner/answers.py",
                "(request.shard_id)\n        if self._may_answer()",
                "(request.shard_id)\n        if True",
            ),
        ),
        ("tests/runner/test_answers.py::test_a_runner_that_may_have_been_evicted_sends_no_volatile_reply",),
    ),
    Safeguard(
        "end of a ghost",
        "P5",
        "a runner is locked out by the backend of its own last session",
        (
            Edit(
                "entityq/postgres/lease_session.py",
                "                await _end_ghost(pinned, ghost, lease_time)\n",
                "                pass\n",
            ),
        ),
        ("tests/postgres/test_lease_session.py",),
    ),
    Safeguard(
        "leaving before giving up",
        "P5",
        "a runner that drains is given back the shards that it gives up",
        (
            Edit(
                "entityq/runner/lease_keeper.py",
                "            await self._session.drain()  # the others",
                "            pass  # the others",
            ),
        ),
        ("tests/runner/test_lease_keeper.py::test_draining_hands_everything_over_while_the_runner_stays",),
    ),
    Safeguard(
        "looking again for a missed shard",
        "P5",
        "a shard whose last owner's session is still ending waits for the next poll",
        (Edit("entityq/runner/lease_plan.py", "    if not missed:\n", "    if True:\n"),),
        (PLAN + "test_a_look_that_missed_a_shard_is_repeated_soon_and_then_less_and_less_often",),
    ),
    Safeguard(
        "what was read for a lost shard",
        "P4",
        "requests are delivered for a shard that was given up while they were read",
        (
            Edit(
                "entityq/runner/catching_up.py",
                "            if self._current(reading.owned):\n",
                "            if True:\n",
            ),
        ),
        (CATCHING_UP + "test_what_was_read_for_a_shard_that_is_given_up_meanwhile_is_not_delivered",),
    ),
    Safeguard(
        "one position for a pass",
        "P4",
        "a later page shows a sender's later request without the earlier one",
        (
            Edit(
                "entityq/runner/catching_up.py",
                "starting = [reading for reading in passes if reading.position == NOT_KNOWN]",
                "starting = list(passes)",
            ),
        ),
        (CATCHING_UP + "test_every_page_of_a_pass_has_the_position_of_the_first",),
    ),
    Safeguard(
        "broken health check",
        "P5",
        "a check that finds everybody unhealthy takes the shards from everybody",
        (
            Edit(
                "entityq/runner/lease_plan.py",
                "[member for member in serving if member.healthy] or serving",
                "[member for member in serving if member.healthy]",
            ),
        ),
        (PLAN + "test_an_unhealthy_runner_is_given_nothing_where_a_healthy_one_serves",),
    ),
    Safeguard(
        "own echo of a ping",
        "P5",
        "Redis being away makes all runners unhealthy",
        (Edit("entityq/runner/pings.py", "peer in self._echoed and peer not in", "peer not in"),),
        ("tests/runner/test_pings.py",),
    ),
    Safeguard(
        "a frozen process is not a blocked loop",
        "P5",
        "a process ends itself when it wakes from a freeze",
        (
            Edit(
                "entityq/runner/loop_watch.py",
                "self.seconds + min(elapsed, LONGEST_LOOK)",
                "self.seconds + elapsed",
            ),
        ),
        ("tests/runner/test_loop_watch.py::test_a_frozen_process_does_not_end_itself_when_it_wakes",),
    ),
    Safeguard(
        "attempts that ended a process",
        "P5",
        "a request that blocks the event loop ends one process after the other, for ever",
        (Edit("entityq/runner/attempts.py", "return lost >= MAX_ATTEMPTS", "return False"),),
        ("tests/runner/test_attempts.py",),
    ),
)
