"""From an error of the library to one sentence, an exit code and, with -j, a document."""

from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from redis.exceptions import RedisError

from entityq import errors
from entityq.errors import Accepted, EntityQError
from entityq_cli.exit_code import CommandError, ExitCode
from entityq_cli.output import print_json

_UNAVAILABLE = (
    errors.EntityNotAssigned,
    errors.PersistenceError,
    errors.RunnerNotRegistered,
    errors.RunnerUnavailable,
)


def exit_code(error: EntityQError) -> ExitCode:
    """Of the command that the error ended."""
    if isinstance(error, errors.SendTimeout):
        return ExitCode.STILL_PENDING if error.accepted is Accepted.YES else ExitCode.UNAVAILABLE
    return ExitCode.UNAVAILABLE if isinstance(error, _UNAVAILABLE) else ExitCode.FAILED


@contextmanager
def one_sentence(*, as_json: bool = False, sending: bool = False) -> Generator[None]:
    """Turns errors into a CommandError; `sending` keeps what an error says about being accepted."""
    try:
        yield
    except EntityQError as error:
        if as_json:
            print_json({"error": describe(error)})
        sentence = str(error) if sending else f"{error.what.rstrip('.')}. {error.advice}".rstrip()
        raise CommandError(sentence, exit_code(error)) from error
    except (psycopg.OperationalError, RedisError, OSError) as error:
        reason = " ".join(str(error).split())
        if as_json:
            print_json({"error": {"type": type(error).__name__, "message": reason}})
        raise CommandError(f"A server did not answer: {reason}", ExitCode.UNAVAILABLE) from error


def describe(error: EntityQError) -> dict[str, str | None]:
    """For -j; a request id is text, because JSON readers have no integers of 64 bits."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "accepted": error.accepted.name.lower(),
        "request_id": None if error.request_id is None else str(error.request_id),
    }
