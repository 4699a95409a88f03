"""What a broadcast says of itself: pure values."""

import pytest

from entityq import Broadcast, MalformedMessage
from entityq.broadcast import EVERYONE, Reached, read_reached, tally
from entityq.reply import Outcome, Reply, decode_reply


def test_the_answer_of_a_runner_is_frozen() -> None:
    answer = Reached(reached=17, refused=3)
    encoded = answer.reply(5).encode()
    assert encoded == bytes.fromhex("940100a0c41382a77265616368656411a77265667573656403")
    assert read_reached(decode_reply(5, encoded)) == answer
    assert EVERYONE == "*"


@pytest.mark.parametrize("value", [b"", b"\x80", b"\x93\x01\x02\x03", b"\x82\xa7reached\xa1x\xa7refused\x01"])
def test_what_is_no_answer_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_reached(Reply(5, Outcome.SUCCESS, "", value))


def test_the_answers_are_added_up() -> None:
    assert tally(3, [Reached(2, 1), Reached(5, 0)]) == Broadcast(2, 7, 1, 1)
    assert tally(0, []) == Broadcast(0, 0, 0, 0)
