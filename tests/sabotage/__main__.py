"""Switches off one safeguard after the other, in copies of the checkout, and runs the tests that must notice.

    python -m tests.sabotage [--only NAME] [--jobs 2] [--write docs/sabotage.md]

Ends with 1 when the tests fail with all safeguards on, or pass without one of them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.sabotage.safeguard import Safeguard
from tests.sabotage.safeguards import SAFEGUARDS
from tests.support.processes import ROOT

COPIED = ("entityq", "cli", "tests", "examples", "benchmarks", "docs", "typings")
FILES = ("pyproject.toml", "README.md", "Makefile", "constraints.txt")
SECONDS = 300
TESTS_FAILED = 1

HEAD = """# Sabotage: the tests know each safeguard

Each row is something that keeps a promise of [guarantees](guarantees.md). `make sabotage` switches it off in a
copy of the sources, and runs a test that must fail then. Written by `make sabotage ARGS="--write docs/sabotage.md"`.

| safeguard | promise | without it | noticed by |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Result:
    """`noticed_by` is empty where the tests passed, or could not be run."""

    noticed_by: tuple[str, ...]
    output: str


def copy_checkout(directory: Path) -> None:
    """Once: somebody may be at work in it."""
    for name in COPIED:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in FILES:
        shutil.copy(ROOT / name, directory)


def run_tests(directory: Path, tests: tuple[str, ...]) -> Result:
    path = os.pathsep.join((str(directory), str(directory / "cli")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60", *tests]
    try:
        finished = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result((), f"did not end within {SECONDS} s")
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", finished.stdout, re.MULTILINE)
    noticed = tuple(dict.fromkeys(failed)) if finished.returncode == TESTS_FAILED else ()
    return Result(noticed, finished.stdout + finished.stderr)


def without(safeguard: Safeguard, sources: Path) -> Result:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "copy"
        shutil.copytree(sources, directory)
        safeguard.switch_off(directory)
        return run_tests(directory, safeguard.noticed_by)


def with_all(safeguards: tuple[Safeguard, ...], sources: Path) -> bool:
    """Whether the tests pass as they should."""
    tests = tuple(dict.fromkeys(test for safeguard in safeguards for test in safeguard.noticed_by))
    result = run_tests(sources, tests)
    passed = bool(re.search(r"^\d+ passed", result.output, re.MULTILINE)) and not result.noticed_by
    print(f"all safeguards on: {'passed' if passed else result.output}", flush=True)
    return passed


def sabotage(chosen: tuple[Safeguard, ...], sources: Path, jobs: int) -> tuple[bool, list[str]]:
    """Whether every one was noticed, and the rows of the page."""
    good = with_all(chosen, sources)
    rows: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(partial(without, sources=sources), chosen)
        for safeguard, result in zip(chosen, results, strict=True):
            rows.append(row(safeguard, result))
            noticed = " ".join(result.noticed_by) or f"NOT NOTICED\n{result.output}"
            print(f"without {safeguard.name}: {noticed}", flush=True)
            good &= bool(result.noticed_by)
    return good, rows


def row(safeguard: Safeguard, result: Result) -> str:
    tests = ", ".join(f"`{test}`" for test in result.noticed_by)
    return f"| {safeguard.name} | {safeguard.promise} | {safeguard.without} | {tests} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="safeguards whose name has this in it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page of the documentation")
    options = parser.parse_args()
    chosen = tuple(safeguard for safeguard in SAFEGUARDS if options.only in safeguard.name)
    with tempfile.TemporaryDirectory() as directory:
        copy_checkout(Path(directory))
        good, rows = sabotage(chosen, Path(directory), options.jobs)
    print(f"{sum('`' in line for line in rows)} of {len(chosen)} noticed")
    if options.write and good:
        options.write.write_text(HEAD + "".join(rows))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
