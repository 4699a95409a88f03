"""Limits as users write them."""

import pytest

from entityq import Entity, EntityQ, MaxRunning, RateLimit, message
from entityq.limit import UNLIMITED, Limit, read_limit, read_rate


def test_texts_are_those_of_celery() -> None:
    assert read_rate("10/s") == RateLimit(10, per=1.0)
    assert read_rate("100/m") == RateLimit(100, per=60.0)
    assert read_rate("7/h") == RateLimit(7, per=3600.0)


@pytest.mark.parametrize("text", ["", "10", "10/d", "ten/s", "-1/s", "1.5/s", "0/s", " 1/s"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(TypeError, match=r"^x: "):
        read_limit("x", text, None)


def test_a_burst_is_what_starts_in_a_tenth_of_a_second() -> None:
    assert RateLimit(100, per=60.0).together == 1
    assert RateLimit(1_000).together == 100
    assert RateLimit(1_000, burst=3).together == 3


def test_numbers_that_make_no_sense_are_refused() -> None:
    for call in (
        lambda: RateLimit(0),
        lambda: RateLimit(1, per=0),
        lambda: RateLimit(1, burst=0),
        lambda: MaxRunning(0),
        lambda: MaxRunning(1_001, scope="cluster"),
    ):
        with pytest.raises(ValueError, match=r"number|count"):
            call()


def test_decorators_take_them() -> None:
    app = EntityQ("limits")

    @app.entity(rate_limit="5/s")
    class Shop(Entity):
        @message(max_running=3, rate_limit=RateLimit(2, scope="entity"))
        async def sell(self) -> None: ...

        @message
        async def look(self) -> None: ...

    @app.task(max_running=MaxRunning(4, scope="cluster"))
    def pack() -> None: ...

    shop = Shop.__definition__
    assert shop.limit == Limit(RateLimit(5))
    assert shop.messages["sell"].limit == Limit(RateLimit(2, scope="entity"), MaxRunning(3))
    assert shop.messages["look"].limit is not None
    assert not shop.messages["look"].limit
    assert not shop.messages["$forget"].limit
    assert pack.definition.messages["run"].limit == Limit(None, MaxRunning(4, scope="cluster"))
    assert not UNLIMITED
