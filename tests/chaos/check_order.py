"""The order of senders, the versions of states, the epochs of commits."""

from collections import defaultdict

from tests.chaos.evidence import Evidence, Finding
from tests.chaos.history import Attempt
from tests.chaos.stored import Place


def order_of_senders(evidence: Evidence) -> Finding:
    """The requests of one client object to one entity are applied in the order in which it sent them, and so
    are those of one entity's turns."""
    finding = Finding("messages of a sender are applied in the order sent")
    numbers = _numbers(evidence)
    last: dict[tuple[Place, str], int] = {}
    for answer in evidence.stored.answers:
        request = evidence.stored.requests.get(answer.request_id)
        known = numbers.get(answer.request_id)
        if request is None or known is None:
            continue
        sender, n = known
        before = last.get((request.place, sender), 0)
        told = f"{request.place[1]}: number {n} of {sender} after {before} (request {answer.request_id})"
        finding.check(n > before, told)
        last[request.place, sender] = max(n, before)
    return finding


def _numbers(evidence: Evidence) -> dict[int, tuple[str, int]]:
    """The sender of each request and its number there, where they are certain."""
    numbers: dict[int, tuple[str, int]] = {}
    for entity in evidence.stored.entities.values():
        for entry in entity.journal:
            if entry.origin.startswith("@"):
                numbers[entry.request] = (entry.origin, entry.n)
    for attempt in evidence.persisted:
        if attempt.invocation.key is None:
            for request_id in _requests(attempt):
                numbers[request_id] = (attempt.invocation.sender, attempt.invocation.n)
    for attempts in evidence.by_key().values():
        # With several senders it is not known whose attempt it was that was stored.
        if len({attempt.invocation.sender for attempt in attempts}) == 1:
            numbers.update(_first_claims(attempts))
    return numbers


def _first_claims(attempts: list[Attempt]) -> dict[int, tuple[str, int]]:
    """Of one sender's attempts that name a request, the first has made it, and the others have joined it."""
    claims: dict[int, tuple[str, int]] = {}
    for attempt in sorted(attempts, key=lambda each: each.invocation.n):
        for request_id in _requests(attempt):
            claims.setdefault(request_id, (attempt.invocation.sender, attempt.invocation.n))
    return claims


def _requests(attempt: Attempt) -> set[int]:
    named = {raised.request_id for raised in attempt.errors if raised.error != "PrimaryKeyConflict"}
    told = None if attempt.value is None else int(attempt.value["request"])
    return {each for each in (*named, attempt.request_id, told) if each is not None}


def versions_are_contiguous(evidence: Evidence) -> Finding:
    """Each answered request of an entity is one version of it; epochs never go back."""
    finding = Finding("state versions are contiguous, epochs never decrease")
    version: dict[Place, int] = defaultdict(int)
    epoch: dict[Place, int] = defaultdict(int)
    for change in evidence.stored.changes:
        place = change.place
        told = f"{place[1]}: version {change.version} of epoch {change.epoch} after {version[place]} of "
        finding.check(change.version == version[place] + 1, told + str(epoch[place]))
        finding.check(change.epoch >= epoch[place], told + str(epoch[place]))
        version[place], epoch[place] = change.version, change.epoch
    answered: dict[Place, int] = defaultdict(int)
    for request in evidence.stored.requests.values():
        answered[request.place] += request.value is not None
    for place, entity in evidence.stored.entities.items():
        turns = answered[place]
        finding.check(entity.version == turns, f"{place[1]}: version {entity.version} after {turns} turns")
        finding.check(entity.version == version[place], f"{place[1]}: {entity.version} came from nowhere")
    return finding


def journals_are_in_order(evidence: Evidence) -> Finding:
    """The fencing tokens that handlers were given only grow."""
    finding = Finding("fencing tokens only grow")
    for place, entity in evidence.stored.entities.items():
        before = (0, -1)
        for entry in entity.journal:
            token = (entry.epoch, entry.version)
            grows = token[0] >= before[0] and token[1] > before[1]
            finding.check(grows, f"{place[1]}: token {token} after {before}")
            before = token
    return finding


def no_commit_by_an_old_epoch(evidence: Evidence) -> Finding:
    """The epoch of a commit is the one of the last acquisition of its shard before it."""
    finding = Finding("no commit by an old epoch")
    stored = evidence.stored
    events = [(each.tick, "taken", each.shard_id, each.epoch) for each in stored.acquisitions]
    events += [(each.tick, "reply", each.shard_id, each.epoch) for each in stored.answers]
    events += [(each.tick, "state", each.shard_id, each.epoch) for each in stored.changes]
    current: dict[int, int] = defaultdict(int)
    for tick, what, shard_id, epoch in sorted(events):
        if what == "taken":
            told = f"shard {shard_id}: epoch {epoch} was taken after {current[shard_id]}"
            finding.check(epoch == current[shard_id] + 1, told)
            current[shard_id] = epoch
        else:
            told = f"shard {shard_id}: a {what} of epoch {epoch} at tick {tick}, in {current[shard_id]}"
            finding.check(epoch == current[shard_id], told)
    return finding
