"""The exit code of each error: what scripts decide by."""

import psycopg
import pytest
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.refusal import exit_code, one_sentence
from redis.exceptions import ConnectionError as RedisConnectionError

from entityq import errors
from entityq.errors import Accepted, EntityQError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PrimaryKeyConflict("x"), 1),
        (errors.ReplyExpired("x"), 1),
        (errors.EntityDefect("x"), 1),
        (errors.Interrupted("x"), 1),
        (errors.MailboxFull("x"), 1),
        (errors.PayloadTooLarge("x"), 1),
        (errors.UnsafeConfiguration("x"), 1),
        (errors.PersistenceError("x"), 69),
        (errors.RunnerUnavailable("x", accepted=Accepted.YES), 69),
        (errors.RunnerNotRegistered("x", accepted=Accepted.YES), 69),
        (errors.EntityNotAssigned("x"), 69),
        (errors.SendTimeout("x"), 75),
        (errors.SendTimeout("x", accepted=Accepted.NO), 69),
        (errors.SendTimeout("x", accepted=Accepted.UNKNOWN), 69),
    ],
)
def test_exit_codes(error: EntityQError, code: int) -> None:
    assert exit_code(error) == code


def test_every_error_has_one() -> None:
    for error in EntityQError.__subclasses__():
        assert exit_code(error("x")) in {1, 69, 75}


@pytest.mark.parametrize(
    "error", [psycopg.OperationalError("gone"), RedisConnectionError("gone"), ConnectionError("gone")]
)
def test_a_lost_server_is_a_sentence(error: Exception) -> None:
    with pytest.raises(CommandError) as raised, one_sentence():
        raise error

    assert raised.value.code is ExitCode.UNAVAILABLE
    assert "gone" in raised.value.sentence
