"""Both type checkers accept the right calls and refuse each wrong one."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT = HERE / "right_calls.py"

Errors = dict[str, dict[int, str]]


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A text file in the repository, so that `make types` does not trip over it."""
    file = tmp_path / "wrong_calls.py"
    file.write_text((HERE / "wrong_calls.txt").read_text())
    return file


def test_mypy(wrong: Path) -> None:
    require(mypy(wrong), wrong)


def test_pyright(wrong: Path) -> None:
    require(pyright(wrong), wrong)


def require(errors: Errors, wrong: Path) -> None:
    assert errors.get(RIGHT.name, {}) == {}
    found = errors[wrong.name]
    lines = wrong.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}
    accepted = {number: lines[number - 1] for number in marked - found.keys()}
    assert accepted == {}, "wrong, and not refused"
    assert {number: found[number] for number in found.keys() - marked} == {}, "right, and refused"


def mypy(wrong: Path) -> Errors:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", RIGHT, wrong],
        cwd=wrong.parent,
        env={
            **os.environ,
            "MYPYPATH": f"{ROOT}:{ROOT / 'typings'}",
            "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert checked.stderr == ""
    found = re.findall(r"^(.*?):(\d+): error: (.*)$", checked.stdout, re.MULTILINE)
    return by_file((Path(file).name, int(line), text) for file, line, text in found)


def pyright(wrong: Path) -> Errors:
    project = wrong.parent / "pyrightconfig.json"
    included = [str(RIGHT), str(wrong)]
    project.write_text(
        json.dumps({"include": included, "typeCheckingMode": "strict", "extraPaths": [str(ROOT)]})
    )
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", project],
        cwd=wrong.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    diagnostics = json.loads(checked.stdout)["generalDiagnostics"]
    return by_file(
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1, found["message"])
        for found in diagnostics
        if found["severity"] == "error"
    )


def by_file(found: Iterable[tuple[str, int, str]]) -> Errors:
    errors: Errors = {}
    for file, line, text in found:
        errors.setdefault(file, {})[line] = text
    return errors
