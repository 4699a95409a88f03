"""Accepted, applied, answered: what callers were told is what Postgres has."""

from collections import Counter, defaultdict

from tests.chaos.entry import Entry
from tests.chaos.evidence import Evidence, Finding
from tests.chaos.history import Attempt, Value
from tests.chaos.stored import StoredRequest


def every_accepted_request_is_answered(evidence: Evidence) -> Finding:
    """Also the one of which an error said that it is accepted. Nothing may be pending, or without a reply."""
    finding = Finding("every accepted request is answered")
    stored = evidence.stored
    finding.check(stored.pending == 0, f"{stored.pending} requests are pending at the end")
    for request in stored.requests.values():
        finding.check(request.value is not None, f"request {request.request_id} has no reply")
    for attempt in evidence.persisted:
        for request_id in _accepted(attempt):
            told = f"{attempt.invocation.name}: accepted as request {request_id}, which is not stored"
            finding.check(request_id in stored.requests, told)
    return finding


def _accepted(attempt: Attempt) -> set[int]:
    ids = {raised.request_id for raised in attempt.errors if raised.accepted == "yes"}
    return {each for each in (*ids, attempt.request_id) if each is not None}


def each_reply_is_stored_once(evidence: Evidence) -> Finding:
    finding = Finding("a reply is written once, and stays")
    for request_id, times in Counter(answer.request_id for answer in evidence.stored.answers).items():
        finding.check(times == 1, f"request {request_id} was answered {times} times")
    return finding


def each_key_is_applied_once(evidence: Evidence) -> Finding:
    """In the journals of all entities together; never for a key whose every attempt was refused."""
    finding = Finding("each key is applied once")
    applied = Counter(
        entry.origin for entity in evidence.stored.entities.values() for entry in entity.journal
    )
    for key, attempts in evidence.by_key().items():
        answers = [attempt.value for attempt in attempts if attempt.value is not None]
        refused = any("refused" in value for value in answers)
        wanted = {0} if refused or attempts[0].invocation.kind == "refuse" else {1} if answers else {0, 1}
        finding.check(applied[key] in wanted, f"key {key} was applied {applied[key]} times, not {wanted}")
        settled = any(raised.error == "PrimaryKeyConflict" for each in attempts for raised in each.errors)
        finding.check(
            bool(answers) or settled or _cut_off(attempts), f"key {key} was repeated, and never answered"
        )
    return finding


def _cut_off(attempts: list[Attempt]) -> bool:
    """Its last attempt ended with its process: a process that was replaced settles its keys, others cannot."""
    return attempts[-1].ended is None


def each_send_is_applied_once(evidence: Evidence) -> Finding:
    """Of messages without a key: an attempt is applied once if it was accepted, at most once otherwise."""
    finding = Finding("each message without a key is applied once")
    applied = Counter(
        (entry.origin, entry.n) for entity in evidence.stored.entities.values() for entry in entity.journal
    )
    for attempt in evidence.persisted:
        invocation = attempt.invocation
        if invocation.key is not None:
            continue
        times = applied[invocation.sender, invocation.n]
        sure = attempt.value is not None or bool(_accepted(attempt))
        denied = bool(attempt.errors) and attempt.errors[-1].accepted == "no" and not sure
        wanted = {1} if sure else {0} if denied else {0, 1}
        finding.check(times in wanted, f"{invocation.name} was applied {times} times, not {wanted}")
    return finding


def a_key_has_one_reply(evidence: Evidence) -> Finding:
    """For everybody who has it, and the one that is stored."""
    finding = Finding("replies of a key are identical")
    stored = _by_key(evidence)
    for key, attempts in evidence.by_key().items():
        for attempt in attempts:
            if attempt.value is None:
                continue
            request = stored.get(key)
            same = request is not None and attempt.value == request.value
            finding.check(same, f"{attempt.invocation.name}: key {key} was answered {attempt.value}")
    return finding


def another_payload_is_refused(evidence: Evidence) -> Finding:
    """Which payload came first, the journal tells."""
    finding = Finding("a key with another payload is refused, with the same one it is not")
    variants = {
        entry.origin: entry.n for entity in evidence.stored.entities.values() for entry in entity.journal
    }
    for key, attempts in evidence.by_key().items():
        if key not in variants:
            continue
        for attempt in attempts:
            same = attempt.invocation.variant == variants[key]
            conflict = any(raised.error == "PrimaryKeyConflict" for raised in attempt.errors)
            told = f"{attempt.invocation.name}: key {key} with "
            finding.check(not (same and conflict), told + "its own payload was refused")
            finding.check(same or attempt.value is None, told + "another payload was answered")
    return finding


def what_was_told_is_what_was_committed(evidence: Evidence) -> Finding:
    """The reply that a caller has is the stored one, and of the run whose state was committed."""
    finding = Finding("reply and state are of the same run of the handler")
    requests, entities = evidence.stored.requests, evidence.stored.entities
    for attempt in evidence.persisted:
        if attempt.value is not None:
            request = requests.get(int(attempt.value["request"]))
            same = request is not None and request.value == attempt.value
            finding.check(same, f"{attempt.invocation.name} was told what is not stored: {attempt.value}")
    for request in requests.values():
        if request.value is None or "place" not in request.value:
            continue
        journal = entities[request.place].journal if request.place in entities else ()
        place = int(request.value["place"])
        entry = journal[place - 1] if 0 < place <= len(journal) else None
        same = entry is not None and (entry.request, entry.run) == (
            request.request_id,
            request.value["run"],
        )
        finding.check(same, f"request {request.request_id}: the reply is of another run than the state")
    return finding


def reads_see_what_was_committed(evidence: Evidence) -> Finding:
    finding = Finding("a volatile read sees a committed state")
    for attempt in evidence.history.attempts.values():
        if attempt.invocation.persisted or attempt.value is None:
            continue
        entity = evidence.stored.entities.get((attempt.invocation.type, attempt.invocation.entity))
        finding.check(
            _was_committed(attempt.value, entity.journal if entity else ()),
            f"{attempt.invocation.name} saw {attempt.value}",
        )
    return finding


def _was_committed(seen: Value, journal: tuple[Entry, ...]) -> bool:
    lines, run = int(seen["lines"]), str(seen["run"])
    if lines == 0:
        return run == ""
    return lines <= len(journal) and journal[lines - 1].run == run


def sends_of_turns_arrive_once(evidence: Evidence) -> Finding:
    """What a turn sends is sent when its state is committed, and only then; what it asks, at most once."""
    finding = Finding("what turns send and ask arrives once")
    arrived: dict[str, list[int]] = defaultdict(list)
    for entity in evidence.stored.entities.values():
        for entry in entity.journal:
            if entry.origin[0] in "@?":
                arrived[entry.origin].append(entry.n)
    for (type_, id_), entity in evidence.stored.entities.items():
        if type_ == "Ledger":
            came = sorted(arrived[f"@{id_}"])
            wanted = list(range(1, entity.chained + 1))
            finding.check(came == wanted, f"of {entity.chained} sends of {id_} came {came}")
    for request in evidence.stored.requests.values():
        if request.message == "consult" and request.value is not None:
            times, heard = len(arrived[f"?{request.request_id}"]), bool(request.value.get("heard"))
            told = f"the ask in the turn of request {request.request_id} was applied {times} times"
            finding.check(times == 1 if heard else times <= 1, told)
    return finding


def _by_key(evidence: Evidence) -> dict[str, StoredRequest]:
    return {each.key: each for each in evidence.stored.requests.values() if each.key is not None}
