from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.address import Address
from entityq.envelope import Envelope
from entityq.runner.mailbox import Admission, admission, next_to_start
from entityq.runner.request import Request

ANY = st.booleans()
ADMIT, DEFER, REFUSE = Admission.ADMIT, Admission.DEFER, Admission.REFUSE


def decide(
    *,
    persisted: bool = True,
    deferred: bool = False,
    resident: bool = True,
    queued: int = 0,
    capacity: int = 3,
    room: bool = True,
) -> Admission:
    return admission(
        persisted=persisted,
        deferred=deferred,
        resident=resident,
        queued=queued,
        capacity=capacity,
        room_for_residents=room,
    )


@pytest.mark.parametrize(("queued", "persisted", "volatile"), [(2, ADMIT, ADMIT), (3, DEFER, REFUSE)])
def test_the_capacity_is_the_last_that_is_admitted(
    queued: int, persisted: Admission, volatile: Admission
) -> None:
    assert decide(queued=queued) is persisted
    assert decide(queued=queued, persisted=False) is volatile


def test_what_is_deferred_is_not_overtaken() -> None:
    assert decide(deferred=True) is DEFER
    # Volatile requests have no order.
    assert decide(deferred=True, persisted=False) is ADMIT


def test_only_a_new_entity_needs_a_place() -> None:
    assert decide(room=False) is ADMIT
    assert decide(room=False, resident=False) is DEFER
    assert decide(room=False, resident=False, persisted=False) is REFUSE


@given(
    st.fixed_dictionaries(
        {"persisted": ANY, "deferred": ANY, "resident": ANY, "room": ANY, "queued": st.integers(0, 5)}
    )
)
def test_persisted_requests_are_never_refused_and_volatile_ones_never_deferred(
    given_: dict[str, Any],
) -> None:
    decision = decide(**given_)
    assert decision is not (REFUSE if given_["persisted"] else DEFER)
    if decision is ADMIT:
        assert given_["queued"] < 3


def mailbox(*concurrent: bool) -> deque[tuple[Request, bool]]:
    request = Request(Envelope(1, Address("A", "a"), "m", b"", True, 1), 1, 1, None)
    return deque((request, flag) for flag in concurrent)


@pytest.mark.parametrize(
    ("concurrent", "ordered_busy", "place"),
    [
        ((), False, None),
        ((False, False), False, 0),
        ((False, False), True, None),
        ((False, True, True), True, 1),
        ((True, False), False, 0),
    ],
)
def test_ordered_requests_start_one_at_a_time_and_concurrent_ones_overtake(
    concurrent: tuple[bool, ...], ordered_busy: bool, place: int | None
) -> None:
    assert next_to_start(mailbox(*concurrent), ordered_busy=ordered_busy) == place
