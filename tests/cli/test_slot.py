"""When a runner that ended is started again."""

from entityq_cli.slot import restart_delay


def test_at_once_after_the_first_crash_then_longer_and_longer() -> None:
    delays = [restart_delay(crashes) for crashes in range(1, 12)]

    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert delays == sorted(delays)
    assert delays[-1] == 10.0


def test_a_very_long_series_has_a_delay_too() -> None:
    assert restart_delay(100_000) == 10.0
