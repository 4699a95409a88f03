"""Evidence made by hand, for the tests of the checks: a good run, which each test spoils in its own way."""

from dataclasses import replace
from typing import Any

from tests.chaos.entry import Entry
from tests.chaos.evidence import Evidence
from tests.chaos.history import Attempt, History, Invocation, Raised, Sample, Struck, Value
from tests.chaos.stored import Acquisition, Answer, Change, Stored, StoredEntity, StoredRequest

# The one shard and the two entities of the story; a runner takes the shard, another one takes it over.
SHARD = 3
BOOK = ("Ledger", "0.1")
OTHER = ("Ledger", "0.2")
DESK = ("Desk", "0.1")
SENDER = "p1-1a"


class Story:
    """Six requests, in this order:

    1  number 1 of the sender, to BOOK, sent
    2  number 2, to BOOK, keyed "k", asked; number 3 repeats it, and number 4 has another payload
    3  number 5, to BOOK, a chain of one send: request 4, to OTHER
    5  number 6, to DESK, asks OTHER: request 6
    """

    def __init__(self) -> None:
        self.history = History()
        self.stored = Stored()
        self.ends: list[str] = []
        self._tick = 0
        self._now = 100.0
        self._take(1)
        self._sent(1, 1, BOOK, "note")
        self._asked(2, 2, BOOK, "put", key="k")
        self._repeated(3, 2)
        self._refused(4)
        self._take(2)
        self._asked(3, 5, BOOK, "chain")
        self._turn(4, OTHER, "note", (f"@{BOOK[1]}", 1))
        self._turn(6, OTHER, "note", ("?5", 6))
        self._asked(5, 6, DESK, "consult")
        self.entity(BOOK, chained=1)
        self.read = self._read()
        self.history.faults.append(Struck("postgres-killed", "postgres", 90.0, 95.0))
        self.history.samples.append(Sample(7, 100.0, 50 * 1024**2))

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.history, self.stored, self.ends)

    def attempt(self, n: int) -> Attempt:
        return self.history.attempts[f"{SENDER}/{n}"]

    def entity(self, place: tuple[str, str], **change: Any) -> None:
        self.stored.entities[place] = replace(self.stored.entities[place], **change)

    def request(self, request_id: int, **change: Any) -> None:
        self.stored.requests[request_id] = replace(self.stored.requests[request_id], **change)

    def raised(self, n: int, error: str, accepted: str, request_id: int | None = None) -> None:
        self._now += 1
        self.attempt(n).errors.append(Raised(error, accepted, request_id, self._now))

    def fail(self, n: int, error: str, accepted: str) -> Attempt:
        """An attempt of a message without a key that came to nothing."""
        attempt = self._invoked(n, BOOK, "note", None)
        self.raised(n, error, accepted)
        return attempt

    # ----- how the story is told

    def _take(self, epoch: int) -> None:
        self._tick += 1
        self.stored.acquisitions.append(Acquisition(self._tick, SHARD, epoch))

    def _invoked(self, n: int, place: tuple[str, str], message: str, key: str | None) -> Attempt:
        self._now += 1
        invocation = Invocation(SENDER, n, message, *place, message, key)
        attempt = self.history.attempts[invocation.name] = Attempt(invocation, self._now)
        return attempt

    def _sent(self, request_id: int, n: int, place: tuple[str, str], message: str) -> None:
        attempt = self._invoked(n, place, message, None)
        attempt.accepted, attempt.request_id = self._now, request_id
        self._replied(attempt, self._turn(request_id, place, message, (SENDER, n)))

    def _asked(
        self, request_id: int, n: int, place: tuple[str, str], message: str, key: str | None = None
    ) -> None:
        attempt = self._invoked(n, place, message, key)
        origin = (key, 0) if key else (SENDER, n)
        self._replied(attempt, self._turn(request_id, place, message, origin, key))

    def _repeated(self, n: int, request_id: int) -> None:
        request = self.stored.requests[request_id]
        assert request.value is not None
        self._replied(self._invoked(n, request.place, request.message, request.key), request.value)

    def _refused(self, n: int) -> None:
        attempt = self._invoked(n, BOOK, "put", "k")
        attempt.invocation = replace(attempt.invocation, variant=1)
        self.raised(n, "PrimaryKeyConflict", "no", 2)

    def _replied(self, attempt: Attempt, value: Value) -> None:
        self._now += 1
        attempt.replied, attempt.value = self._now, value

    def _turn(
        self,
        request_id: int,
        place: tuple[str, str],
        message: str,
        origin: tuple[str, int],
        key: str | None = None,
    ) -> Value:
        epoch = self.stored.acquisitions[-1].epoch
        entity = self.stored.entities.get(place, StoredEntity(0, 0))
        entry = Entry(entity.version, epoch, request_id, *origin, f"run{request_id}")
        journal = (*entity.journal, entry)
        self.stored.entities[place] = replace(
            entity, version=entity.version + 1, epoch=epoch, journal=journal
        )
        value = {"request": request_id, "place": len(journal), "run": entry.run, "heard": True}
        self.stored.requests[request_id] = StoredRequest(request_id, SHARD, place, message, key, value)
        self._tick += 2
        self.stored.answers.append(Answer(self._tick - 1, request_id, SHARD, epoch))
        self.stored.changes.append(Change(self._tick, SHARD, place, entity.version + 1, epoch))
        return value

    def _read(self) -> Attempt:
        attempt = self._invoked(7, BOOK, "read", None)
        self._replied(attempt, {"lines": 2, "run": "run2"})
        return attempt
