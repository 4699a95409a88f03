"""What a run saw, as text."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from tests.chaos.evidence import Evidence, Finding
from tests.chaos.history import Attempt, Struck

# Of each invariant.
_SHOWN = 10
# Seconds after a fault's end in which an operation still counts as one that met it.
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
    """The longest operation that met each fault; faults overlap, so it may have met others, too."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    attempts = [each for each in evidence.history.attempts.values() if each.replied is not None]
    for fault in evidence.history.faults:
        by_kind[fault.kind].append(_longest(fault, attempts))
    yield f"{'faults':24}{'times':>8}{'longest operation (s): median':>32}{'max':>8}"
    for kind, longest in sorted(by_kind.items()):
        yield f"  {kind:22}{len(longest):8}{median(longest):32.2f}{max(longest):8.2f}"
    taken = len(evidence.stored.acquisitions)
    samples = evidence.history.samples
    most = max((sample.rss for sample in samples), default=0) / 1024**2
    yield f"  all: {len(evidence.history.faults)} faults, shards taken {taken} times"
    yield f"  memory: {len({each.pid for each in samples})} runners, at most {most:.0f} MiB"


def _longest(fault: Struck, attempts: Sequence[Attempt]) -> float:
    return max(
        (
            each.replied - each.invoked
            for each in attempts
            if each.replied is not None
            and each.invoked <= fault.end + _AFTERMATH
            and each.replied >= fault.start
        ),
        default=0.0,
    )


def _invariants(findings: Sequence[Finding]) -> Iterator[str]:
    yield f"{'invariants':66}{'checked':>10}{'violated':>10}"
    for finding in findings:
        yield f"  {finding.invariant:64}{finding.examined:10}{len(finding.violations):10}"


def _violations(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        for violation in finding.violations[:_SHOWN]:
            yield f"VIOLATED {finding.invariant}: {violation}"
        if len(finding.violations) > _SHOWN:
            yield f"  ... and {len(finding.violations) - _SHOWN} more"
