"""What a run saw, as text."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import median

from tests.chaos.evidence import Evidence, Finding
from tests.chaos.history import Attempt, Struck

# Of each invariant.
_SHOWN = 10
# Seconds after a fault's end that still count as its own.
_AFTERMATH = 1.0


def report(evidence: Evidence, findings: Sequence[Finding]) -> str:
    sections = (
        _operations(evidence),
        _errors(evidence),
        _faults(evidence),
        _invariants(findings),
        _violations(findings),
    )
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))


def _operations(evidence: Evidence) -> Iterator[str]:
    by_kind: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in evidence.history.attempts.values():
        by_kind[attempt.invocation.kind].append(attempt)
    yield f"{'operations':24}{'attempts':>10}{'answered':>10}{'errors':>8}{'cut off':>9}"
    for kind, attempts in sorted(by_kind.items()):
        answered = sum(attempt.value is not None for attempt in attempts)
        errors = sum(bool(attempt.errors) for attempt in attempts)
        cut = sum(attempt.ended is None for attempt in attempts)
        yield f"  {kind:22}{len(attempts):10}{answered:10}{errors:8}{cut:9}"
    stored = evidence.stored
    yield f"  all: {len(evidence.history.attempts)} attempts"
    yield f"  {len(stored.requests)} requests to {len(stored.entities)} entities were accepted"


def _errors(evidence: Evidence) -> Iterator[str]:
    counted = Counter(
        f"{raised.error} ({raised.accepted}){'' if attempt.invocation.persisted else ', volatile'}"
        for attempt in evidence.history.attempts.values()
        for raised in attempt.errors
    )
    yield f"{'errors at callers':46}{'times':>8}"
    for error, times in sorted(counted.items()):
        yield f"  {error:44}{times:8}"


def _faults(evidence: Evidence) -> Iterator[str]:
    """Faults overlap, and a queue that one has left is waited for under the next: upper bounds."""
    attempts = [each for each in evidence.persisted if each.replied is not None]
    longest, silences = _longest_by_second(attempts), _silence_by_second(attempts)
    by_kind: dict[str, list[Struck]] = defaultdict(list)
    for fault in evidence.history.faults:
        by_kind[fault.kind].append(fault)
    yield f"{'':32}{'nobody answered (s)':>22}{'longest operation (s)':>26}"
    yield f"{'faults':24}{'times':>8}{'median':>12}{'max':>10}{'median':>16}{'max':>10}"
    for kind, faults in sorted(by_kind.items()):
        silent = [_worst(silences, fault) for fault in faults]
        took = [_worst(longest, fault) for fault in faults]
        line = f"  {kind:22}{len(faults):8}{median(silent):12.2f}{max(silent):10.2f}"
        yield f"{line}{median(took):16.2f}{max(took):10.2f}"
    samples = evidence.history.samples
    most = max((sample.rss for sample in samples), default=0) / 1024**2
    yield (
        f"  all: {len(evidence.history.faults)} faults, "
        f"{len(evidence.stored.acquisitions)} times that a runner took a shard"
    )
    yield f"  memory: {len({each.pid for each in samples})} runners, at most {most:.0f} MiB"


def _longest_by_second(attempts: Sequence[Attempt]) -> dict[int, float]:
    """For each second, the longest of the operations that it was a part of."""
    return _by_second([(each.invoked, each.replied) for each in attempts if each.replied is not None])


def _silence_by_second(attempts: Sequence[Attempt]) -> dict[int, float]:
    """For each second, the longest time between two replies to anybody that it was a part of."""
    replies = sorted(each.replied for each in attempts if each.replied is not None)
    return _by_second(pairwise(replies))


def _by_second(spans: Iterable[tuple[float, float]]) -> dict[int, float]:
    found: dict[int, float] = defaultdict(float)
    for start, end in spans:
        for second in range(int(start), int(end) + 1):
            found[second] = max(found[second], end - start)
    return found


def _worst(by_second: dict[int, float], fault: Struck) -> float:
    seconds = range(int(fault.start), int(fault.end + _AFTERMATH) + 1)
    return max(by_second.get(second, 0.0) for second in seconds)


def _invariants(findings: Sequence[Finding]) -> Iterator[str]:
    yield f"{'invariants':70}{'checked':>10}{'violated':>10}"
    for finding in findings:
        yield f"  {finding.invariant:68}{finding.examined:10}{len(finding.violations):10}"


def _violations(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        for violation in finding.violations[:_SHOWN]:
            yield f"VIOLATED {finding.invariant}: {violation}"
        if len(finding.violations) > _SHOWN:
            yield f"  ... and {len(finding.violations) - _SHOWN} more"
