"""`python -m tests.chaos`: see docs/testing.md."""

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.deck import KINDS
from tests.chaos.report import report
from tests.chaos.run import Options, run
from tests.chaos.verdict import judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=600.0, help="of faults")
    parser.add_argument("--seed", type=int, help="of the faults and the load; a random one by default")
    parser.add_argument("--runners", type=int, default=3)
    parser.add_argument("--producers", type=int, default=3)
    parser.add_argument("--faults", help=f"some of {','.join(KINDS)}; all by default")
    parser.add_argument("--keep", action="store_true", help="histories and logs, also of a good run")
    given = parser.parse_args()
    kinds = given.faults.split(",") if given.faults else list(KINDS)
    if unknown := sorted(set(kinds) - KINDS.keys()):
        parser.error(f"no faults: {', '.join(unknown)}")
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    # The links go on writing to processes that were killed, and asyncio warns of each write.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    directory = Path(tempfile.mkdtemp(prefix="entityq-chaos-"))
    print(f"seed {seed}, {given.seconds:g} seconds, {given.runners} runners, {given.producers} producers")
    print(f"histories and logs: {directory}", flush=True)
    options = Options(given.seconds, seed, given.runners, given.producers, kinds)
    evidence = asyncio.run(run(options, directory))
    findings = judge(evidence, given.seconds, kinds)
    print(f"\n{report(evidence, findings)}\n")
    if any(finding.violations for finding in findings):
        print(f"FAILED: seed {seed}; histories and logs are in {directory}")
        return 1
    if not given.keep:
        shutil.rmtree(directory)
    print(f"passed: seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
