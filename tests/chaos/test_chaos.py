"""A short run with every kind of fault. `make chaos` is the long one."""

from pathlib import Path

import pytest

from tests.chaos.deck import KINDS
from tests.chaos.report import report
from tests.chaos.run import Options, run
from tests.chaos.verdict import judge

SECONDS = 35.0
SEED = 20_260


@pytest.mark.timeout(400)
async def test_the_promises_hold_under_every_kind_of_fault(tmp_path: Path) -> None:
    options = Options(SECONDS, SEED, workers=3, producers=2)
    evidence = await run(options, tmp_path)
    findings = judge(evidence, SECONDS, list(KINDS))
    assert not any(finding.violations for finding in findings), f"{tmp_path}\n{report(evidence, findings)}"
