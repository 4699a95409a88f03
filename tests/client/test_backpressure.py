from entityq.client.backpressure import Room, is_current


def test_it_looks_at_most_once_a_second() -> None:
    assert not is_current(None, 1.0)
    assert is_current(Room(5, counted=False, until=2.0), 1.9)
    assert not is_current(Room(5, counted=False, until=2.0), 2.0)


def test_a_used_up_estimate_is_looked_at_again_and_a_used_up_count_is_not() -> None:
    assert not is_current(Room(0, counted=False, until=2.0), 1.0)
    assert is_current(Room(0, counted=True, until=2.0), 1.0)
