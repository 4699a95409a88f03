"""What pings say, decided without a channel."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entityq.redis.control import ControlMessage, decode_control
from entityq.runner.health import Judgement
from entityq.runner.pings import UNANSWERED, Pings, answer

ME, PEER, OTHER = 1, 2, 3
HEALTHY = Judgement(healthy=True)


def heard(pings: Pings, *peers: int, echo: bool = True, answers: bool = True) -> Any:
    """One round, and what it says."""
    for ping in pings.begin(peers):
        pong = answer(ping.fields["to"], ping)
        if echo:
            pings.hear(ping)
        if answers and pong is not None:
            pings.hear(pong)
    return pings.end()


def test_the_format_is_frozen() -> None:
    (ping,) = Pings(2**62).begin([5])
    pong = answer(5, decode_control(ping.encode()))
    assert ping.encode() == b'{"kind":"ping","from":4611686018427387904,"to":5,"nonce":1}'
    assert pong is not None
    assert pong.encode() == b'{"kind":"pong","from":5,"to":4611686018427387904,"nonce":1}'


def test_only_pings_to_oneself_are_answered() -> None:
    (ping,) = Pings(ME).begin([PEER])
    assert answer(OTHER, ping) is None
    assert answer(ME, ping) is None
    assert answer(PEER, ControlMessage("pong", ping.fields)) is None
    assert answer(PEER, ControlMessage("ping", {})) is None


def test_an_answer_is_healthy_at_once() -> None:
    assert heard(Pings(ME), PEER, OTHER) == {PEER: HEALTHY, OTHER: HEALTHY}


def test_unhealthy_after_several_unanswered_pings_in_a_row_and_healthy_at_the_first_answer() -> None:
    pings = Pings(ME)
    for _ in range(UNANSWERED - 1):
        assert heard(pings, PEER, answers=False) == {}
    for _ in range(2):
        assert not heard(pings, PEER, answers=False)[PEER].healthy
    assert heard(pings, PEER) == {PEER: HEALTHY}
    for _ in range(UNANSWERED - 1):
        assert heard(pings, PEER, answers=False) == {}


def test_a_ping_that_did_not_come_back_to_us_says_nothing_and_begins_the_row_anew() -> None:
    pings = Pings(ME)
    for _ in range(UNANSWERED * 3):
        assert heard(pings, PEER, echo=False, answers=False) == {}
    for _ in range(UNANSWERED - 1):
        assert heard(pings, PEER, answers=False) == {}
    assert heard(pings, PEER, echo=False, answers=False) == {}
    for _ in range(UNANSWERED - 1):
        assert heard(pings, PEER, answers=False) == {}
    assert not heard(pings, PEER, answers=False)[PEER].healthy


def test_an_echo_of_an_earlier_round_is_none_of_this_one() -> None:
    pings = Pings(ME)
    (old,) = pings.begin([PEER])
    for _ in range(UNANSWERED * 2):
        pings.begin([PEER])
        pings.hear(old)
        assert pings.end() == {}


def test_a_late_answer_is_one() -> None:
    pings = Pings(ME)
    (old,) = pings.begin([PEER])
    pong = answer(PEER, old)
    assert pong is not None
    pings.end()
    pings.begin([PEER])
    assert pings.hear(pong)
    assert pings.end() == {PEER: HEALTHY}


def test_the_pings_of_other_runners_say_nothing() -> None:
    pings, others = Pings(ME), Pings(OTHER)
    for _ in range(UNANSWERED * 2):
        pings.begin([PEER])
        (ping,) = others.begin([PEER])
        pong = answer(PEER, ping)
        assert pong is not None
        assert not pings.hear(ping)
        assert not pings.hear(pong)
        assert pings.end() == {}


def test_a_peer_that_was_somebody_elses_for_a_while_begins_anew() -> None:
    pings = Pings(ME)
    for _ in range(UNANSWERED - 1):
        heard(pings, PEER, answers=False)
    assert [ping.fields["to"] for ping in pings.begin([OTHER])] == [OTHER]
    assert heard(pings, PEER, answers=False) == {}


ODD: list[Any] = [None, True, 0, ME, PEER, 1.5, 2**70, "", "1", [], [ME], {}, {"from": ME}]


@pytest.mark.parametrize("kind", ["ping", "pong", "joined"])
@given(st.dictionaries(st.sampled_from(["from", "to", "nonce"]), st.sampled_from(ODD)))
def test_whatever_somebody_writes_to_the_channel_raises_nothing(kind: str, fields: dict[str, Any]) -> None:
    """An error in a listener would end the control channel."""
    pings = Pings(ME)
    pings.begin([PEER])
    pings.hear(ControlMessage(kind, fields))
    answer(ME, ControlMessage(kind, fields))


@pytest.mark.parametrize("rounds", [1, UNANSWERED])
def test_everybody_has_to_answer(rounds: int) -> None:
    pings = Pings(ME)
    for _ in range(rounds):
        to_peer, to_other = pings.begin([PEER, OTHER])
        first, second = answer(PEER, to_peer), answer(OTHER, to_other)
        assert first is not None
        assert second is not None
        assert not pings.hear(first)
        assert pings.hear(second)
