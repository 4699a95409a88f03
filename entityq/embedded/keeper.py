"""The process that starts the embedded servers and stops them when their last user has gone.

`python -m entityq.embedded.keeper DIRECTORY LOCK [--temporary]`, started by `entityq.embedded.start`:
LOCK is the inherited, locked file descriptor of the keeper's lock.
"""

import json
import os
import shutil
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from entityq.embedded.flock import wait_exclusive
from entityq.embedded.place import Place, private, service_user
from entityq.embedded.postgres import PostgresServer
from entityq.embedded.valkey import ValkeyServer


def main(arguments: list[str]) -> None:
    place = Place(Path(arguments[0]))
    keeper_lock = int(arguments[1])
    temporary = "--temporary" in arguments[2:]
    # The starter waits for this parent, not for the keeper: nobody's child, the keeper outlives its starter
    # and leaves no zombie with it.
    if os.fork() != 0:
        os._exit(0)
    signal.signal(signal.SIGTERM, _end)
    os.set_inheritable(keeper_lock, False)
    users = keep(place)
    if temporary:
        for directory in (place.sockets, place.directory):
            shutil.rmtree(directory, ignore_errors=True)
    # In this order: a process that then gets its place among the users finds the keeper's lock free.
    os.close(keeper_lock)
    if users is not None:
        os.close(users)


def keep(place: Place) -> int | None:
    """Runs both servers until they have no user; returns the users' file, locked, or None after SIGTERM."""
    user = service_user()
    private(place.postgres, user, owned=True)
    private(place.valkey, None, owned=False)
    private(place.sockets, user, owned=True)
    postgres = PostgresServer(place.postgres, place.sockets, user)
    valkey = ValkeyServer(place.valkey, place.sockets)
    with ExitStack() as ending, suppress(SystemExit):
        ending.callback(postgres.stop)
        ending.callback(valkey.stop)
        ending.callback(place.ready.unlink, missing_ok=True)
        valkey.start()
        postgres.start()
        _announce(place, postgres, valkey)
        return wait_exclusive(place.users)
    return None


def _announce(place: Place, postgres: PostgresServer, valkey: ValkeyServer) -> None:
    """Readers see the whole file or none."""
    facts = {"keeper": os.getpid(), "postgres_url": postgres.url(), "redis_url": valkey.url}
    new = place.ready.with_suffix(".new")
    new.write_text(json.dumps(facts))
    new.rename(place.ready)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit


if __name__ == "__main__":
    main(sys.argv[1:])
