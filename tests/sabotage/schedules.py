"""The safeguards of schedules and singletons."""

from tests.sabotage.safeguard import Edit, Safeguard

CRON = "tests/runner/test_cron.py::"
SINGLETONS = "tests/runner/test_singletons.py::"
TIMES = "tests/test_cron_times.py::"

SCHEDULES = "entityq/schedules.py"
RUNS = "entityq/runner/singletons.py"

SCHEDULE_SAFEGUARDS = (
    Safeguard(
        "the one timer of a schedule",
        "P2",
        "a timer that was armed before a pause fires all the same, and arms another one",
        (
            Edit(
                SCHEDULES,
                "        if self.context.request_id != self.armed or self.next_at is None:\n            return\n",
                "        self.next_at = self.next_at or (await self._desk.look(0)).now\n",
            ),
        ),
        (CRON + "test_paused_and_resumed",),
    ),
    Safeguard(
        "schedules that the code does not have any more",
        "P7",
        "their last timer waits for code that knows them",
        (Edit(SCHEDULES, "        if type_.startswith(PREFIX) and", "        if type_ is None and"),),
        (CRON + "test_a_removed_schedule_stops",),
    ),
    Safeguard(
        "expression of the owner's code",
        "P2",
        "a deploy does not change the expression of a schedule",
        (
            Edit(
                SCHEDULES,
                "        if (self.expression, self.timezone) == (times.expression, times.timezone):\n",
                "        if self.expression:\n",
            ),
        ),
        (CRON + "test_another_expression_at_a_deploy",),
    ),
    Safeguard(
        "timer of a schedule at a takeover",
        "P7",
        "a schedule whose timer was cancelled stands still for ever",
        (Edit(SCHEDULES, "(changed or not seen.unanswered)", "changed"),),
        (CRON + "test_a_lost_timer_is_armed_again_by_the_next_owner",),
    ),
    Safeguard(
        "overlap of runs",
        "P4",
        "a run is sent while the one before goes on",
        (
            Edit(
                SCHEDULES,
                "            if seen.unanswered and schedule",
                "            if not seen and schedule",
            ),
        ),
        (CRON + "test_overlap",),
    ),
    Safeguard(
        "missed instants",
        "P2",
        "instants of long ago are fired one after the other, whatever was asked for",
        (
            Edit(
                "entityq/cron_plan.py",
                "    if catch_up is CatchUp.ALL or now - armed <= grace:\n",
                "    if grace:\n",
            ),
        ),
        (CRON + "test_what_was_missed",),
    ),
    Safeguard(
        "local times that do not exist",
        "P2",
        "a daily schedule at such a time has no instant on that day, or one at another time",
        (Edit("entityq/cron_times.py", "        if not _exists(at):\n", "        if not at:\n"),),
        (TIMES + "test_a_local_time_that_does_not_exist_stands_for_the_end_of_the_gap",),
    ),
    Safeguard(
        "local times that come twice",
        "P2",
        "a daily schedule of six fields has two instants on that day",
        (Edit("entityq/cron_times.py", "        if not self._fixed:\n", "        if self._zone:\n"),),
        (TIMES + "test_a_local_time_that_comes_twice_is_the_first_one",),
    ),
    Safeguard(
        "end of a singleton before its shard is unlocked",
        "P5",
        "the next owner starts it while it cleans up",
        (
            Edit(
                "entityq/runner/life.py",
                "        async with self._singletons.ending(shard_id):\n            await",
                "        if shard_id:\n            await",
            ),
        ),
        (SINGLETONS + "test_it_has_ended_before_its_shard_is_given_up",),
    ),
    Safeguard(
        "singletons that keep their end to themselves",
        "P5",
        "one that returns when it is cancelled is started again, where its lease has gone",
        (Edit(RUNS, "    if task is not None and task.cancelling():\n", "    if task is None:\n"),),
        (SINGLETONS + "test_one_that_keeps_its_end_to_itself_is_not_started_again",),
    ),
    Safeguard(
        "errors of singletons",
        "P7",
        "one that fails is not started again",
        (
            Edit(
                RUNS,
                '        log.exception("singleton.failed name=%s; it is started again", singleton.name)\n',
                "        raise\n",
            ),
        ),
        (SINGLETONS + "test_it_is_started_again_when_it_fails_or_returns",),
    ),
)
