"""What can be a schedule, and what cannot."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from entityq import Entity, EntityQ, SingletonContext, message, testing

DAILY = "0 3 * * *"


def new_app() -> EntityQ:
    return EntityQ("schedules", postgres_url="postgresql://none", redis_url="redis://none")


def test_declared_schedules_have_names_and_a_type_in_each_group() -> None:
    app = new_app()

    @app.cron(DAILY, name="early", arguments={"note": "early"}, instant="day")
    @app.cron(DAILY, instant="day")
    @app.task(shard_group="slow")
    def report(day: datetime, note: str = "") -> None: ...

    @app.entity
    class Ledger(Entity):
        @message
        def close(self) -> None: ...

    closing = Ledger.at("main").close
    assert app.cron(DAILY)(closing) is closing
    assert app.cron.names == ["Ledger.close", "early", "report"]
    assert {type_ for type_ in app.definitions if type_.startswith("_")} == {"_cron.slow", "_cron.default"}
    assert app.definitions["_cron.slow"].shard_group == "slow"
    assert app.cron.at("early").id == "early"


@pytest.mark.parametrize(
    ("expression", "options", "what"),
    [
        ("* * *", {}, "the schedule report: '. . .' is no cron expression"),
        (DAILY, {"timezone": "Mars/Olympus"}, "no time zone"),
        (DAILY, {"catch_up": "some"}, "'some' is not a valid CatchUp"),
        (DAILY, {"overlap": "queue"}, "'queue' is not a valid Overlap"),
        (DAILY, {"grace": -1}, "grace is from 0 seconds to a day"),
        (DAILY, {"grace": float("nan")}, "grace is from 0 seconds to a day"),
        (DAILY, {"arguments": {"colour": "red"}}, "colour"),
        (DAILY, {"instant": "colour"}, "colour"),
        (DAILY, {"arguments": {"day": "some day"}}, "day"),
        (DAILY, {}, "day"),
    ],
)
def test_what_cannot_be_a_schedule(expression: str, options: Mapping[str, Any], what: str) -> None:
    app = new_app()

    @app.task
    def report(day: datetime) -> None: ...

    with pytest.raises(TypeError, match=what):
        app.cron(expression, **options)(report)
    assert app.cron.names == []


def test_messages_that_cannot_be_scheduled() -> None:
    app = new_app()

    @app.entity
    class Ledger(Entity):
        @message(persisted=False)
        def look(self) -> None: ...

        @message(primary_key="day")
        def close(self, day: str) -> None: ...

    main = Ledger.at("main")
    with pytest.raises(TypeError, match="volatile"):
        app.cron(DAILY)(main.look)
    with pytest.raises(TypeError, match="instant must name day"):
        app.cron(DAILY, arguments={"day": "1"})(main.close)
    app.cron(DAILY, instant="day")(main.close)
    with pytest.raises(TypeError, match=r"already has a schedule Ledger\.close"):
        app.cron(DAILY, instant="day")(main.close)
    plain: Any = len
    with pytest.raises(TypeError, match=r"@app\.task below it"):
        app.cron(DAILY)(plain)


async def test_the_test_client_fires_nothing_and_takes_tasks_as_they_are() -> None:
    app = new_app()

    @app.cron("* * * * * *")
    @app.task
    async def tick() -> int:
        return 1

    @app.singleton
    async def leader(context: SingletonContext) -> None: ...

    async with testing.client(tick) as client:
        assert await client.task(tick).ask() == 1
