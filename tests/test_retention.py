from datetime import timedelta

from entityq.entity import Entity, message
from entityq.registration import EntityOptions, TaskOptions, define_entity, define_task


class Kept(Entity):
    @message(keep=timedelta(days=2), keep_keys=7200)
    async def touch(self) -> None: ...

    @message
    async def look(self) -> None: ...


MESSAGES = define_entity(Kept, EntityOptions()).messages


def work() -> None: ...


def test_the_settings_are_for_what_a_message_does_not_say() -> None:
    assert MESSAGES["look"].retention.filled(60, 90) == (60, 90)
    task = define_task(work, TaskOptions(keep=60))
    assert task.messages["run"].retention.filled(3600, 7200) == (60, 7200)


def test_a_key_is_kept_at_least_as_long_as_its_reply() -> None:
    assert MESSAGES["touch"].retention.filled(60, 60) == (172_800, 172_800)
    assert MESSAGES["look"].retention.filled(90, 60) == (90, 90)
