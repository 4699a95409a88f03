"""What callers had to bear, and what runners took: errors by the faults that allow them, memory, ends."""

from collections.abc import Mapping
from statistics import median

from tests.chaos.deck import Area, area_of
from tests.chaos.evidence import Evidence, Finding
from tests.chaos.history import Attempt, Raised, Struck

# Seconds after a fault's end in which its errors may still come: a caller's own retries, a runner's return.
SETTLING = 15.0

# Bytes. What a runner may take, and how much more at the end of a long run than at its start.
MAX_RSS = 256 * 1024**2
MAX_GROWTH = 32 * 1024**2
LONG_RUN = 120.0

_POSTGRES = frozenset({Area.POSTGRES, Area.NETWORK})
_REDIS = frozenset({Area.REDIS, Area.NETWORK, Area.RUNNER, Area.POSTGRES})
_ANY = frozenset(Area)
_SERVING = frozenset({Area.POSTGRES, Area.NETWORK, Area.RUNNER})

# (volatile?, error, accepted): the faults under which a caller may see it. What is not here is never allowed.
ALLOWED: Mapping[tuple[bool, str, str], frozenset[Area]] = {
    (False, "PersistenceError", "no"): _POSTGRES,
    (False, "PersistenceError", "unknown"): _POSTGRES,
    (False, "SendTimeout", "no"): _POSTGRES,
    (False, "SendTimeout", "unknown"): _POSTGRES,
    (False, "SendTimeout", "yes"): _SERVING,
    (False, "RunnerUnavailable", "yes"): _SERVING,
    (True, "SendTimeout", "no"): _REDIS,
    (True, "EntityNotAssigned", "no"): _SERVING,
    (True, "RunnerUnavailable", "no"): _SERVING,
}
# By design of the load: keys with two payloads, small mailboxes.
ALWAYS = frozenset({(False, "PrimaryKeyConflict", "no"), (True, "MailboxFull", "no")})


def errors_are_allowed(evidence: Evidence) -> Finding:
    finding = Finding("callers see only the errors that the faults allow")
    for attempt in evidence.history.attempts.values():
        for raised in attempt.errors:
            told = f"{attempt.invocation.name}: {raised.error} ({raised.accepted}): {raised.what}"
            finding.check(_is_allowed(attempt, raised, evidence.history.faults), told)
    return finding


def _is_allowed(attempt: Attempt, raised: Raised, faults: list[Struck]) -> bool:
    sort = (not attempt.invocation.persisted, raised.error, raised.accepted)
    if sort in ALWAYS:
        return True
    areas = ALLOWED.get(sort, frozenset())
    return any(
        area_of(fault.kind) in areas and fault.start <= raised.at and attempt.invoked <= fault.end + SETTLING
        for fault in faults
    )


def memory_is_bounded(evidence: Evidence) -> Finding:
    """No runner takes more than MAX_RSS; in a long run, runners of its last third no more than those of its
    middle, and some."""
    finding = Finding("the memory of runners is bounded")
    samples = evidence.history.samples
    for sample in samples:
        finding.check(sample.rss <= MAX_RSS, f"runner {sample.pid} has {sample.rss / 1024**2:.0f} MiB")
    if not samples or samples[-1].at - samples[0].at < LONG_RUN:
        return finding
    start, length = samples[0].at, samples[-1].at - samples[0].at
    thirds = [
        median([each.rss for each in samples if int((each.at - start) / length * 2.999) == third])
        for third in (1, 2)
    ]
    told = f"from {thirds[0] / 1024**2:.0f} to {thirds[1] / 1024**2:.0f} MiB in the last third"
    finding.check(thirds[1] <= thirds[0] + MAX_GROWTH, told)
    return finding


def processes_end_when_told(evidence: Evidence) -> Finding:
    finding = Finding("processes end when told, and only then", examined=len(evidence.history.samples))
    finding.violations.extend(evidence.ends)
    return finding
