from entityq.runner.turn_slots import TurnSlots


class Wanting:
    """An activation with so many requests; it holds a slot for each that it started."""

    def __init__(self, slots: TurnSlots, wanted: int) -> None:
        self.slots = slots
        self.wanted = wanted
        self.started = 0

    def pump(self) -> None:
        while self.wanted and self.slots.take(self):
            self.wanted -= 1
            self.started += 1


def test_turns_beyond_the_limit_start_in_turn() -> None:
    slots = TurnSlots(2)
    first, second, third = Wanting(slots, 2), Wanting(slots, 1), Wanting(slots, 1)
    for activation in (first, second, third):
        activation.pump()
    assert [first.started, second.started, third.started] == [2, 0, 0]
    slots.give_back()
    assert [second.started, third.started] == [1, 0]
    slots.give_back()
    assert third.started == 1


def test_one_that_does_not_want_its_slot_any_more_passes_it_on() -> None:
    """Its mailbox was emptied meanwhile: the shard is being given up."""
    slots = TurnSlots(1)
    running, gone, waiting = Wanting(slots, 1), Wanting(slots, 1), Wanting(slots, 1)
    for activation in (running, gone, waiting):
        activation.pump()
    gone.wanted = 0
    slots.give_back()
    assert waiting.started == 1


def test_a_turn_that_waits_lends_its_slot() -> None:
    slots = TurnSlots(1)
    asking, asked, later = Wanting(slots, 1), Wanting(slots, 1), Wanting(slots, 1)
    for activation in (asking, asked):
        activation.pump()
    with slots.lent():
        assert asked.started == 1
        slots.give_back()
    # It has its own back; there is none for others until it ends.
    later.pump()
    assert later.started == 0
    slots.give_back()
    assert later.started == 1
