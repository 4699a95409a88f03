from entityq.address import Shard
from entityq.redis.keys import CONSUMER_GROUP, Keys


def test_the_names_are_frozen() -> None:
    keys = Keys("bank")
    assert keys.stream(Shard("default", 7)) == b"eq:{bank}:stream:default:7"
    assert keys.reply_channel(123) == b"eq:{bank}:reply:123"
    assert keys.control_channel() == b"eq:{bank}:control"
    assert keys.cluster() == b"eq:{bank}:cluster"
    assert CONSUMER_GROUP == b"runner"
